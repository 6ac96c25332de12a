package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/logs"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// feeder gives the slots of a shift one consumer after the other, until the shift is stopped. It owns the goroutine of
// run; slots call next.
type feeder struct {
	cfg    *Config
	phases *phases
	state  *state
	ledger *ledger

	suspects func() int                                // how many of them run in slots
	giveBack func([]broker.Delivery, *feed) (all bool) // returns deliveries that no slot has received

	stopped chan struct{} // closed when the last consumer has stopped, or did not answer Stop

	mu      sync.Mutex    // guards the fields below
	current *feed         // the latest; nil before the first
	fed     chan struct{} // closed when current is replaced
}

func newFeeder(cfg *Config, p *phases, st *state, l *ledger) *feeder {
	return &feeder{cfg: cfg, phases: p, state: st, ledger: l, stopped: make(chan struct{}), fed: make(chan struct{})}
}

// switchTo makes the slots read from next. The consumer before it has ended and given back the deliveries that no slot
// had received.
func (f *feeder) switchTo(next *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = next
	close(f.fed)
	f.fed = make(chan struct{})
}

// next waits for a feed other than over, which may be nil. It returns nil when the shift takes nothing more.
func (f *feeder) next(over *feed) *feed {
	for {
		f.mu.Lock()
		current, fed := f.current, f.fed
		f.mu.Unlock()
		switch {
		case f.phases.taking.Err() != nil:
			return nil
		case current != over:
			return current
		}
		select {
		case <-fed:
		case <-f.phases.taking.Done():
		}
	}
}

// latest returns the latest feed; nil if there never was one.
func (f *feeder) latest() *feed {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current
}

// options returns the options of the worker's consumers.
func (f *feeder) options() broker.ConsumeOptions {
	return broker.ConsumeOptions{
		Queue: f.cfg.Queue, Tag: f.cfg.Name, Prefetch: f.cfg.leastAhead(), MaxPrefetch: f.cfg.mostAhead(),
		AckEach: f.cfg.AckEach,
	}
}

// open declares the worker's queues, all of which the broker must accept, and starts consuming. Another program or an
// operator may have deleted the queues.
func (f *feeder) open(ctx context.Context, session broker.Session) (broker.Consumer, error) {
	if err := session.Declare(ctx, link.Whole(f.cfg.Parts)); err != nil {
		return nil, err
	}
	return session.Consume(ctx, f.options())
}

// openAgain consumes in a session that is not the worker's first, even if some of its queues cannot be declared.
func (f *feeder) openAgain(ctx context.Context, session broker.Session) (broker.Consumer, error) {
	if err := f.cfg.Declarer.Declare(ctx, session, f.cfg.Parts); err != nil {
		return nil, err
	}
	return session.Consume(ctx, f.options())
}

// run feeds the slots. It returns when the shift was stopped and all slots have ended, or when it was stopped hard.
func (f *feeder) run(session broker.Session, consumer broker.Consumer) {
	pauses := link.RetryPauses()
	for consumer != nil {
		at := newFeed(session, consumer, f.cfg.leastAhead())
		f.switchTo(at)

		born := time.Now()
		if f.follow(at); f.phases.taking.Err() != nil {
			f.finish()
			return
		}
		f.giveBack(received(consumer, f.cfg.mostAhead()), at) // they are lost: others must know before they come again
		f.state.note(false, consumer.Err())
		// The supervisor logs a lost connection, once for all workers.
		if !errors.Is(consumer.Err(), broker.ErrSessionLost) {
			f.cfg.Log.Warn("consumer lost", "err", logs.Brief(consumer.Err()))
		}
		if time.Since(born) >= link.StableAfter {
			pauses.Reset()
		}
		session, consumer = f.reopen(session, pauses)
	}
	// The shift was stopped, or the connection was given up, while there was no consumer.
	// There is nothing to give back.
	f.phases.stopTaking()
	f.awaitSlots()
}

// reopen consumes again in the current session. It returns nil when the shift is stopped or there will be no more
// sessions.
func (f *feeder) reopen(
	dead broker.Session, pauses interface{ NextBackOff() time.Duration },
) (broker.Session, broker.Consumer) {
	taking := f.phases.taking
	var problem error
	deaths, said := 0, ""
	for {
		// The supervisor already paces sessions, so pause after a dead one only if this worker ends one after the
		// other. A session's Done may come later than its consumer's.
		if dead.Err() == nil || deaths > 1 {
			if !link.Sleep(taking, link.PauseAfter(problem, pauses)) {
				return nil, nil
			}
		}
		var not broker.Session
		if dead.Err() != nil {
			not = dead
		}
		session, err := f.cfg.Link.Await(taking, not)
		if err != nil {
			return nil, nil
		}
		ctx, cancel := context.WithTimeout(taking, link.OpenTimeout)
		consumer, err := f.openAgain(ctx, session)
		cancel()
		if err == nil {
			f.state.note(true, nil)
			f.cfg.Log.Info("worker receives " + f.cfg.Noun + "s again")
			return session, consumer
		}
		if taking.Err() != nil {
			return nil, nil
		}
		f.state.note(false, err)
		if text := err.Error(); text != said { // a queue may be away for hours
			said = text
			f.cfg.Log.Warn("cannot consume; trying again",
				"err", logs.Brief(err, fmt.Sprintf("consume queue %q: ", f.cfg.Queue)))
		}
		if dead, problem = session, err; errors.Is(err, broker.ErrSessionLost) {
			deaths++
		}
	}
}

// finish ends the last consumer: it gives back deliveries that have not started, lets the slots end, and flushes.
func (f *feeder) finish() {
	f.state.note(false, nil)
	ctx, cancel := context.WithTimeout(f.phases.hard, link.CloseTimeout)
	most := link.CloseTimeout
	at := f.latest()
	waiting, err := f.stop(ctx, at)
	if err != nil && !errors.Is(err, broker.ErrSessionLost) {
		f.cfg.Log.Warn("the consumer did not stop", "err", logs.Brief(err))
		most = verdict.Grace // it will not answer Close either
	}
	cancel()
	close(f.stopped)
	f.giveBack(waiting, at)
	f.awaitSlots()
	ctx, cancel = context.WithTimeout(context.Background(), most)
	defer cancel()
	if err := at.consumer.Close(ctx); err != nil && !errors.Is(err, broker.ErrSessionLost) {
		f.cfg.Log.Warn("the consumer did not close", "err", logs.Brief(err))
	}
}

// stop stops the consumer of a feed and returns the deliveries that were waiting for a slot. A consumer gives back what
// nobody has received, but a broker that does not count losses then marks it like a lost delivery. With the default
// prefetch hardly any delivery waits: one does while a slot runs a suspect.
func (f *feeder) stop(ctx context.Context, at *feed) (waiting []broker.Delivery, err error) {
	consumer := at.consumer
	if at.exact {
		return nil, consumer.Stop(ctx)
	}
	if consumer.SetPrefetch(ctx, 0) == nil { // no more come, and those that came are in the channel
		waiting = received(consumer, f.cfg.mostAhead())
	}
	return waiting, consumer.Stop(ctx)
}

// awaitSlots waits until all slots have ended, or until the shift is stopped hard.
func (f *feeder) awaitSlots() {
	select {
	case <-f.ledger.empty:
	case <-f.phases.hard.Done():
	}
}
