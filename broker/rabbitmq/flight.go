package rabbitmq

import (
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// flight is a message on the way to its outcome.
type flight struct {
	caller *caller
	i      int // index of the message in the call
	id     string
	to     target // where it was published to
	size   int    // of its body
	delay  *delay // nil = not delayed
	port   *port
	quota  *quota // in which it has a place

	// Used with the port's turn.

	start        int64                      // how many bytes were written to the connection before it
	confirmation *amqp.DeferredConfirmation // of the last try; nil = the channel was closed before anything was written

	// Guarded by publisher.mu.

	exchange  string // where it is written to; that of a delayed one changes: see aim
	key       string
	pub       amqp.Publishing // zero once it is over
	slots     chan struct{}   // where its place in the window is; nil = it has none
	pipe      *pipe           // where it waits for an answer; nil = on none
	tag       uint64          // there
	since     time.Time       // when it was put there
	written   bool            // in the last try; also while being written
	rewritten bool            // see rewrite
	orphan    bool            // its caller has stopped waiting
	landed    bool            // it has its outcome
	returned  string          // the broker's words if it came back
	over      chan struct{}   // closed by release; nil = nobody waits for that
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

// released returns a channel that is closed when f has its outcome or is an orphan. The caller holds mu.
func (f *flight) released() <-chan struct{} {
	if f.over == nil {
		f.over = make(chan struct{})
		if f.landed || f.orphan {
			close(f.over)
		}
	}
	return f.over
}

// release lets those go on who wait for f. The caller holds mu.
func (f *flight) release() {
	if f.over != nil {
		close(f.over)
	}
}

// acked reports whether the broker has confirmed it. The caller holds the port's turn.
func (f *flight) acked() bool { return f.confirmation != nil && f.confirmation.Acked() }

// hear gives the broker's answers to their flights.
func (p *publisher) hear(answers []answer) {
	p.mu.Lock()
	defer p.unlock()
	now := time.Now()
	for _, a := range answers {
		pp := p.pipeOf(a.channel)
		if pp == nil {
			continue
		}
		pp.heard = now
		pp.readReturns()
		pp.flights.each(a.tag, a.multiple, func(f *flight) {
			p.passed(f)
			if !a.nack {
				p.end(f, f.confirmed())
				return
			}
			// If the first message of a channel for a quorum queue met a dead leader, RabbitMQ nacks that channel for
			// ever: it does not create its client of the queue anew (enqueue in rabbit_fifo_client.erl).
			pp.stale = true
			p.end(f, broker.ErrNacked)
		})
	}
	p.s.silence.answered()
}

// passed records that the broker has handled f, so its exchange exists and f is not too large. The caller holds mu.
func (p *publisher) passed(f *flight) {
	p.fits = max(p.fits, f.size)
	if x := p.exchanges[f.exchange]; x != nil {
		*x = scouting{passed: true}
	}
}

// confirmed returns the outcome of a message that the broker has confirmed. The broker returns an unroutable message
// before it confirms it, and the client reads in order. So by now the return was read: see notes and pipe.readReturns.
// The caller holds mu.
func (f *flight) confirmed() error {
	if f.returned == "" {
		return nil
	}
	if f.exchange == "" { // the default exchange: the key is a queue's name
		return fmt.Errorf("%s: queue %q: %w", f.returned, f.key, broker.ErrUnroutable)
	}
	return fmt.Errorf("%s: exchange %q: %w", f.returned, f.exchange, broker.ErrUnroutable)
}

// finish gives their last outcome to the flights that a dead session leaves behind.
func (p *publisher) finish() {
	<-p.s.dead
	<-p.conn.notes.ended
	p.conn.socket.kill() // from now on pipe.write writes nothing
	<-p.conn.out.flushing.zero()
	for i := range p.ports {
		pt := &p.ports[i]
		pt.writing <- struct{}{} // after this, nothing is written: see pipe.write
		p.mu.Lock()
		for _, pp := range p.pipes {
			if pp.port != pt {
				continue
			}
			pp.readReturns()
			for _, f := range pp.flights.all() {
				p.end(f, p.lastWord(f))
			}
		}
		p.unlock()
		pt.writing.give()
	}
}

// lastWord returns the outcome after the session has died. The caller holds the port's turn and mu.
func (p *publisher) lastWord(f *flight) error {
	switch {
	case f.acked():
		return f.confirmed()
	case !f.written, f.start >= p.conn.out.handed.Load():
		return p.notSent(errOver)
	}
	return fmt.Errorf("%w: %w", broker.ErrUnconfirmed, p.s.Err())
}

// outcome is what unlock reports about a flight.
type outcome struct {
	f     *flight
	err   error
	again bool // not yet: the message has to be written again
}

// end records the outcome of a flight, unless it has one. The caller holds mu, and calls unlock.
func (p *publisher) end(f *flight, err error) {
	if f.landed {
		return
	}
	if f.pipe != nil {
		f.pipe.remove(f)
	}
	again := f.deleted(err) && !f.rewritten
	if again {
		f.rewritten = true
	} else {
		p.land(f, err)
	}
	p.ended = append(p.ended, outcome{f, err, again})
}

// land frees the place of a flight that has its outcome. The caller holds mu.
func (p *publisher) land(f *flight, outcome error) {
	f.landed = true
	f.pub = amqp.Publishing{}
	p.restore(f.quota, outcome == nil || errors.Is(outcome, broker.ErrNacked) || errors.Is(outcome, broker.ErrUnroutable))
	if f.orphan {
		p.orphans--
		return
	}
	p.leave(f)
	f.release()
}

// leave gives back the place in the window. The caller holds mu.
func (p *publisher) leave(f *flight) {
	if f.slots != nil {
		<-f.slots // never waits
		f.slots = nil
	}
}

// report calls done for each outcome, on a goroutine of its own if there is more to do first. The goroutines end with
// their callers.
func (p *publisher) report(ended []outcome) {
	for _, x := range ended {
		switch c := x.f.caller; {
		case x.again:
			go p.writeOnce(x.f)
		case x.f.delay == nil && errors.Is(x.err, broker.ErrUnroutable):
			go func() {
				c.done(x.f.i, p.explain(x.f, x.err))
				c.release()
			}()
		default:
			c.done(x.f.i, x.err)
			c.release()
		}
	}
}

// explain distinguishes a queue that is away from one that does not exist. A returned message is in no queue, so it
// counts as not sent.
func (p *publisher) explain(f *flight, err error) error {
	if away := p.s.whyUnroutable(f.to.exchange, f.to.key); away != nil {
		return fmt.Errorf("%w: %w", broker.ErrNotSent, away)
	}
	return err
}

// deleted reports whether err is the outcome of a delayed message whose level was deleted.
func (f *flight) deleted(err error) bool {
	return f.delay != nil && f.delay.held &&
		(errors.Is(err, broker.ErrUnroutable) || errors.Is(err, broker.ErrExchangeGone))
}

// errReturned is the outcome of a message that no level took and that nobody waits for any more.
var errReturned = fmt.Errorf("%w: its level was deleted, and nobody waits for it", broker.ErrNotSent)

// writeOnce writes a message again, on a goroutine of its own.
func (p *publisher) writeOnce(f *flight) {
	if err := p.rewrite(f); err != nil {
		p.mu.Lock()
		p.end(f, err)
		p.unlock()
	}
}

// rewrite writes a message again, once, if its level did not take it because the level's queue or exchange was deleted.
// This duplicates nothing, since certainly no queue has the message. For the same reason the outcome is ErrNotSent if
// the message cannot be written again.
func (p *publisher) rewrite(f *flight) error {
	p.s.delays.memory.levels.forget(f.delay.levels)
	p.mu.Lock()
	gone := f.orphan || f.caller.gone
	f.returned = ""
	p.mu.Unlock()
	if gone { // the content of an orphan was dropped
		return errReturned
	}
	levels, err := p.s.declareLevels(f.caller.ctx)
	if err != nil {
		return p.unprepared(err)
	}
	p.mu.Lock()
	f.delay.levels = levels
	p.mu.Unlock()
	if err := p.waitForName(f); err != nil {
		return p.notSent(err)
	}
	p.write(f)
	return nil
}
