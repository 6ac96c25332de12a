package engine

import (
	"errors"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/logs"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// errAbandoned is the outcome of a call that ran on after its timeout and grace.
var errAbandoned = errors.New("still running after its timeout; abandoned")

// duty is what a slot is doing at the moment. Only the slot's own goroutine uses it. It outlives runtime.Goexit in the
// user's code, which ends that goroutine at any point.
type duty struct {
	call     *Call // the call in progress; nil = none
	calling  bool  // its function runs, as far as the ledger knows
	finished bool  // no other slot is to go on in its place
}

// slot runs calls, one after the other, on its own goroutine. Limit slots read from the same consumer. When a call is
// abandoned or steps aside, another slot takes over, and this one ends with the call.
//
// If not nil, c is a call of the slot that this one takes over from, and first does the remaining work for it.
func (s *Shift) slot(c *Call, first func()) {
	d := duty{call: c}
	defer s.endDuty(&d)
	if first != nil {
		if first(); c.aside {
			return
		}
		d.call = nil
	}
	s.walkFeeds(&d)
	d.finished = true
}

// endDuty goes on with the work of a slot that runtime.Goexit has ended.
func (s *Shift) endDuty(d *duty) {
	switch {
	case d.calling:
		s.goexit(d.call)
	case !d.finished && (d.call == nil || !d.call.aside):
		s.startSlot(nil, nil)
	}
}

// walkFeeds runs what arrives, from one consumer after the other. It returns when the shift takes nothing more, or when
// the slot has lost its place because its call stepped aside or was abandoned.
func (s *Shift) walkFeeds(d *duty) {
	at := s.feeder.next(nil)
	for turn := 0; at != nil; turn++ {
		c, more := s.next(at, turn%2 == 0)
		if !more {
			at = s.feeder.next(at)
			continue
		}
		if d.call = c; c == nil {
			continue
		}
		if goesOn := s.runOne(d); !goesOn {
			return
		}
	}
}

// runOne works on d.call until it is settled or somebody else's. It reports whether the slot goes on.
func (s *Shift) runOne(d *duty) bool {
	c := d.call
	switch s.ready(c) {
	case isHeld:
		d.call = nil
		return true
	case toBeCalled:
		d.calling = true
		o := s.invoke(c)
		abandoned := s.ledger.callEnded(c)
		d.calling = false
		if abandoned {
			d.finished = true // before the log, whose handler may end this goroutine: there is a replacement
			s.outlived(c, o)
			return false
		}
		s.conclude(c, o, false)
		if d.call = nil; o.Err == nil && c.run.unknown && !c.aside {
			s.cfg.Handler.Recycle(c)
			return true
		}
	}
	d.call = nil
	return !c.aside
}

// goexit replaces a slot whose goroutine ends from inside a call: by runtime.Goexit in the function, in a method of its
// arguments or its error, or in a hook. Nothing stops a Goexit, so the work goes on in a new goroutine.
func (s *Shift) goexit(c *Call) {
	if s.ledger.callEnded(c) {
		s.cfg.Shared.running.end(&c.run)
		return // it was abandoned: its delivery is settled and its slot replaced
	}
	s.startSlot(c, func() { s.conclude(c, verdict.OutcomeOf(fault.ErrGoexit), false) })
}

// replace starts a slot in place of that of an abandoned call. The new slot first writes the dead letter. The ledger
// has already counted the new slot.
func (s *Shift) replace(c *Call) {
	go s.ledger.run(func() {
		s.slot(c, func() { s.conclude(c, verdict.OutcomeOf(errAbandoned), true) })
	})
}

// startSlot starts a slot in place of one that has ended, or is about to.
func (s *Shift) startSlot(c *Call, first func()) {
	s.ledger.spawn(func() { s.slot(c, first) })
}

// stepAside gives the slot of c to others while c waits for anything but its function. The prefetch bounds how many
// calls wait aside. If c is a suspect, the next suspect may run.
func (s *Shift) stepAside(c *Call) {
	if c.aside {
		return
	}
	c.aside = true
	c.end(noSuspect)
	s.startSlot(nil, nil)
}

// outlived notes that an abandoned call has ended.
func (s *Shift) outlived(c *Call, o verdict.Outcome) {
	s.cfg.Shared.running.end(&c.run)
	s.cfg.about(c, c.Number()).Info("abandoned call ended", attrsOf(o, "took", logs.Rounded(time.Since(c.started)))...)
}

// next waits for the next delivery of a feed, or for an offer of a held one or a suspect. It returns a nil call if there
// was none after all. more is false when the consumer has ended. If both a delivery and an offer are there, offered
// decides. Asking one channel at a time takes a third of the time of a select.
func (s *Shift) next(at *feed, offered bool) (c *Call, more bool) {
	deliveries := at.consumer.Deliveries()
	if offered {
		select {
		case o := <-s.offers:
			return s.take(o, at), true
		default:
		}
	}
	if s.phases.taking.Err() == nil { // otherwise those that are left in the channel are not charged
		select {
		case d, ok := <-deliveries:
			return s.receive(&d, at, ok)
		default:
		}
	}
	select {
	case d, ok := <-deliveries:
		return s.receive(&d, at, ok)
	case o := <-s.offers:
		return s.take(o, at), true
	case <-s.feeder.stopped: // the consumer may never end
		return nil, false
	}
}

// receive makes a call of a delivery; nil if it is not to be worked on. ok is false when the consumer has ended.
func (s *Shift) receive(d *broker.Delivery, at *feed, ok bool) (c *Call, more bool) {
	if !ok {
		return nil, false
	}
	at.received()
	if !s.accept(d, at) {
		return nil, true
	}
	if !d.Redelivered && at.streak.Load() > 0 {
		at.streak.Store(0)
	}
	return s.cfg.newCall(*d, at), true
}

// take makes a call of what is offered; nil if there is nothing after all.
func (s *Shift) take(o offer, at *feed) *Call {
	if o.held != nil {
		return s.shelf.take(o.held)
	}
	return s.patrol.take(at, o)
}

// accept reports whether to work on a delivery.
func (s *Shift) accept(d *broker.Delivery, at *feed) bool {
	counters := s.cfg.Counters
	if isLost(d) {
		counters.Received.Add(1)
		counters.Lost.Add(1) // it is, or will be, delivered again
		s.cfg.Shared.innocents.add(d)
		return false
	}
	if s.phases.taking.Err() == nil {
		counters.Received.Add(1)
		return true
	}
	// Releasing the delivery while the consumer is still there would loop: it would come straight back. If the consumer
	// does not end, the delivery is left to Consumer.Close.
	select {
	case <-at.consumer.Done():
	case <-s.feeder.stopped:
	}
	select { // both may be closed, and a delivery that is left to Close is charged
	case <-at.consumer.Done():
		counters.Received.Add(1)
		s.settler.settle(s.cfg.newCall(*d, at), verdict.Verdict{Action: verdict.Release})
	default:
	}
	return false
}
