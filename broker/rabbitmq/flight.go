package rabbitmq

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// flight is a message on the way to its outcome.
type flight struct {
	id    string
	to    target      // where it was published to
	quota destination // in whose quota it has a place
	size  int         // of its body
	delay *delay      // nil = not delayed
	port  *port
	fate  chan fate     // of its last try, if its pipe has ended
	over  chan struct{} // closed when it has its outcome or is an orphan

	// Guarded by publisher.mu.

	exchange string // where it is written to; that of a delayed one changes: see aim
	key      string
	pub      amqp.Publishing // zero in an orphan
	slots    chan struct{}   // where its place in the window is; nil = it has none
	seat     *list.Element   // in its pipe's flights; nil = it is on none
	try      try             // the last one
	since    time.Time       // of the last try
	written  bool            // in that try; also while being written
	orphan   bool            // its caller has stopped waiting
	returned string          // the broker's words if it came back
}

// name is the part of a message by which a return is matched to its flight.
type name struct {
	id string
	to target
}

// name returns the name that identifies f on a pipe. The caller holds mu.
func (f *flight) name() name { return name{f.id, target{f.exchange, f.key}} }

// aim decides where a delayed message is written to. The caller holds the port's turn and mu.
func (f *flight) aim() {
	if f.delay != nil {
		f.delay.aim(f, &f.pub)
	}
}

// fly writes a flight that has boarded, gives its port's turn back, closes written, and returns the outcome. Once ctx
// has ended, nobody waits for the flight.
func (p *publisher) fly(ctx context.Context, f *flight, written chan<- struct{}) error {
	p.mu.Lock()
	pp, pub := f.try.pipe, f.pub
	p.mu.Unlock()
	t, err := pp.write(f, pub)
	f.port.writing.give()
	if written != nil {
		close(written)
	}
	if err != nil {
		return err
	}
	p.s.silence.wrote()
	defer p.s.silence.over()
	for gone := ctx.Done(); ; {
		var answer <-chan struct{}
		if t.confirmation != nil {
			answer = t.confirmation.Done()
		}
		select {
		case <-answer:
			if err, final := p.answer(f, t); final {
				p.s.silence.answered()
				return err
			}
			t.confirmation = nil // the pipe has ended, and its port decides what that means
		case x := <-f.fate:
			if x.err != nil {
				return x.err
			}
			t = x.try
		case <-gone:
			p.abandon(f)
			gone = nil
		case <-p.s.dead:
			return p.lastWord(f)
		}
	}
}

// answer reads the broker's answer. If final is false, there is none and the channel has ended.
func (p *publisher) answer(f *flight, t try) (err error, final bool) {
	p.mu.Lock()
	defer p.unlock()
	if !t.confirmation.Acked() {
		// The client reports a nack and the end of a channel alike. It marks the channel first.
		if t.pipe.over() {
			return nil, false
		}
		t.pipe.remove(f)
		p.passed(f)
		// If the first message of a channel for a quorum queue met a dead leader, RabbitMQ nacks that channel for ever:
		// it does not create its client of the queue anew (enqueue in rabbit_fifo_client.erl).
		t.pipe.stale = true
		return broker.ErrNacked, true
	}
	err = p.confirmed(f, t)
	t.pipe.remove(f)
	p.passed(f)
	return err, true
}

// passed records that the broker has handled f, so its exchange exists and f is not too large. The caller holds mu.
func (p *publisher) passed(f *flight) {
	p.fits = max(p.fits, f.size)
	f.try.pipe.heard = time.Now()
	if x := p.exchanges[f.exchange]; x != nil {
		*x = scouting{passed: true}
	}
}

// confirmed returns the outcome of a message that the broker has confirmed. The broker returns an unroutable message
// before it confirms it, and the client reads in order. So by now the return is in the channel or was read. The caller
// holds mu.
func (p *publisher) confirmed(f *flight, t try) error {
	t.pipe.readReturns()
	if f.returned == "" {
		return nil
	}
	if f.exchange == "" { // the default exchange: the key is a queue's name
		return fmt.Errorf("%s: queue %q: %w", f.returned, f.key, broker.ErrUnroutable)
	}
	return fmt.Errorf("%s: exchange %q: %w", f.returned, f.exchange, broker.ErrUnroutable)
}

// lastWord returns the outcome after the session has died.
func (p *publisher) lastWord(f *flight) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case f.try.acked():
		return p.confirmed(f, f.try)
	case !f.written:
		return p.notSent(errOver)
	}
	return fmt.Errorf("%w: %w", broker.ErrUnconfirmed, p.s.Err())
}

// abandon makes an orphan of a flight and frees its place. Its done function still runs.
func (p *publisher) abandon(f *flight) {
	p.mu.Lock()
	defer p.unlock()
	if f.orphan {
		return
	}
	p.s.goroutines.add() // Close no longer waits for it
	p.s.publishing.done()
	f.orphan = true
	f.pub = amqp.Publishing{}
	p.leave(f)
	close(f.over)
	p.orphans++
	if f.seat == nil {
		return
	}
	pp := f.try.pipe
	pp.orphans++
	if p.orphans > p.maxUnanswered {
		for i := range p.ports {
			for _, pp := range slices.Clone(p.ports[i].retired) {
				pp.tidy()
			}
		}
	}
}

// land frees the place of a flight that has its outcome. The caller calls done after it has reported the outcome.
func (p *publisher) land(f *flight, outcome error) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f.pub = amqp.Publishing{}
	p.restore(f, outcome == nil || errors.Is(outcome, broker.ErrNacked) || errors.Is(outcome, broker.ErrUnroutable))
	if f.orphan {
		p.orphans--
		return p.s.goroutines.done
	}
	p.leave(f)
	close(f.over)
	return p.s.publishing.done
}

// leave gives back the place in the window. The caller holds mu.
func (p *publisher) leave(f *flight) {
	if f.slots != nil {
		<-f.slots // never waits
		f.slots = nil
	}
}

// errReturned is the outcome of a message that no level took and that nobody waits for any more.
var errReturned = fmt.Errorf("%w: its level was deleted, and nobody waits for it", broker.ErrNotSent)

// rewrite writes a message again, once, if its level did not take it because the level's queue or exchange was deleted.
// This duplicates nothing, since certainly no queue has the message. For the same reason the outcome is ErrNotSent if
// the message cannot be written again.
func (p *publisher) rewrite(ctx context.Context, f *flight) error {
	p.s.delays.memory.levels.forget(f.delay.levels)
	p.mu.Lock()
	orphan := f.orphan
	f.returned = ""
	p.mu.Unlock()
	if orphan { // abandon has dropped the message
		return errReturned
	}
	levels, err := p.s.declareLevels(ctx)
	if err != nil {
		return p.unprepared(err)
	}
	p.mu.Lock()
	f.delay.levels = levels
	p.mu.Unlock()
	if err := p.waitForName(ctx, f); err != nil {
		return p.notSent(err)
	}
	return p.fly(ctx, f, nil)
}

// deleted reports whether err is the outcome of a delayed message whose level was deleted.
func (f *flight) deleted(err error) bool {
	return f.delay != nil && f.delay.held &&
		(errors.Is(err, broker.ErrUnroutable) || errors.Is(err, broker.ErrExchangeGone))
}
