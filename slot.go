package dispatcher

import (
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/logs"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/text"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
	"github.com/seed-416683c9/dispatcher/internal/wire"
)

// slot runs tasks, one after the other, and calls their functions on its own goroutine. WorkerConfig.Limit slots read
// from the same consumer. When a call is abandoned or steps aside, another slot takes over, and this one ends with the
// call.
//
// If not nil, c is a call of the slot that this one takes over from, and first does the remaining work for it.
func (s *shift) slot(c *call, first func()) {
	calling, over := false, false
	defer func() {
		switch { // Only runtime.Goexit in the user's code gets here before over is set.
		case calling:
			s.goexit(c)
		case !over && (c == nil || !c.aside):
			s.startSlot(nil, nil)
		}
		s.slotEnded()
	}()
	if first != nil {
		if first(); c.aside {
			return
		}
		c, first = nil, nil
	}
	for at := s.nextFeed(nil); at != nil; {
		var more bool
		if c, more = s.next(at); !more {
			at = s.nextFeed(at)
			continue
		}
		if c == nil {
			continue
		}
		switch s.ready(c) {
		case isHeld: // it belongs to another goroutine now
			c = nil
			continue
		case toBeCalled:
			calling = true
			o := s.invoke(c)
			abandoned := s.callEnded(c)
			calling = false
			if abandoned {
				over = true
				s.outlived(c, o)
				return
			}
			s.conclude(c, o, false)
		}
		if c.aside {
			return
		}
		c = nil
	}
	over = true
}

// readiness is the next step of a delivery.
type readiness int

const (
	toBeCalled readiness = iota
	toBeSettled
	isHeld // another call of the task runs; a goroutine of its own waits for that
)

// ready decides the next step of a delivery, and settles it if it is not to be called.
func (s *shift) ready(c *call) readiness {
	v, r := s.prepare(c)
	for r == toBeSettled && s.settleUncalled(c, v) {
		c.losses = 0
		v, r = s.admit(c)
	}
	return r
}

// outlived notes that an abandoned call has ended.
func (s *shift) outlived(c *call, o verdict.Outcome) {
	s.w.server.running.end(&c.run)
	s.about(c, c.history.Attempts+1).Info("abandoned call ended", attrsOf(o, text.OneLine(o.Text), "took", logs.Rounded(time.Since(c.started)))...)
}

// next waits for the next delivery of a feed, a held one, or a suspect. It returns a nil call if there was none after
// all. more is false when the consumer has ended.
func (s *shift) next(at *feed) (c *call, more bool) {
	select {
	case d, ok := <-at.consumer.Deliveries():
		if !ok {
			return nil, false
		}
		if !s.accept(&d, at) {
			return nil, true
		}
		if !d.Redelivered {
			at.streak.Store(0)
		}
		return newCall(d, at), true
	case o := <-s.offers:
		if o.held != nil {
			return s.takeHeld(o.held), true
		}
		return s.takeSuspect(at, o), true
	case <-s.stopped: // the consumer may never end
		return nil, false
	}
}

// goexit replaces a slot whose goroutine ends from inside a call: by runtime.Goexit in the function, in a method of its
// arguments or its error, or in a hook. Nothing stops a Goexit, so the work goes on in a new goroutine.
func (s *shift) goexit(c *call) {
	if s.callEnded(c) {
		s.w.server.running.end(&c.run)
		return // it was abandoned: its delivery is settled and its slot replaced
	}
	s.startSlot(c, func() { s.conclude(c, verdict.OutcomeOf(ErrGoexit), false) })
}

// startSlot starts a slot in place of one that has ended, or is about to.
func (s *shift) startSlot(c *call, first func()) {
	s.mu.Lock()
	s.slots++
	s.mu.Unlock()
	go s.slot(c, first)
}

// stepAside gives the slot of c to others while c waits for anything but its function. The prefetch bounds how many
// calls wait aside. If c is a suspect, the next suspect may run.
func (s *shift) stepAside(c *call) {
	if c.aside {
		return
	}
	c.aside = true
	c.end(noSuspect)
	s.startSlot(nil, nil)
}

// accept reports whether to work on a delivery.
func (s *shift) accept(d *broker.Delivery, at *feed) bool {
	stats := &s.w.server.stats
	select {
	case <-d.Lost():
		stats.received.Add(1)
		stats.lost.Add(1) // it is, or will be, delivered to somebody else
		return false
	default:
	}
	if s.taking.Err() == nil {
		stats.received.Add(1)
		return true
	}
	// Releasing the delivery while the consumer is still there would loop: it would come straight back. If the consumer
	// does not end, the delivery is left to Consumer.Close.
	select {
	case <-at.consumer.Done():
	case <-s.stopped:
	}
	select { // both may be closed, and a delivery that is left to Close is charged
	case <-at.consumer.Done():
		stats.received.Add(1)
		s.settle(newCall(*d, at), verdict.Verdict{Action: verdict.Release})
	default:
	}
	return false
}

// prepare decodes the body and finds the function. It runs no user code. If the task is not to be called, prepare
// returns its verdict.
func (s *shift) prepare(c *call) (verdict.Verdict, readiness) {
	if c.claimed { // it was held
		return s.admit(c)
	}
	d := &c.delivery
	if limit := s.w.server.cfg.MaxBodyBytes; limit > 0 && len(d.Body) > limit {
		return verdict.DeadLetter(ReasonMalformed, verdict.OutcomeOf(fmt.Errorf("%w: body of %d bytes, the most is %d", ErrMalformed, len(d.Body), limit))), toBeSettled
	}
	task, err := wire.Decode(d.Body)
	if err != nil {
		return verdict.DeadLetter(ReasonMalformed, verdict.OutcomeOf(err)), toBeSettled
	}
	c.name, c.args = task.Name, task.Args
	if task.UUID != "" {
		c.uuid = task.UUID
	}
	if d.Unreadable != "" { // its attempts and its expiry are unknown
		return verdict.DeadLetter(ReasonMalformed, verdict.OutcomeOf(fmt.Errorf("%w: its headers cannot be read: %s", ErrMalformed, d.Unreadable))), toBeSettled
	}
	// This comes first: a task that runs here has neither ended its worker nor expired.
	if v, r := s.claim(c); r != toBeCalled {
		return v, r
	}
	return s.admit(c)
}

// admit decides whether to call a claimed task.
func (s *shift) admit(c *call) (verdict.Verdict, readiness) {
	if v, run := verdict.Losses(c.history, c.losses, c.suspect()); !run {
		return v, toBeSettled
	}
	now := time.Now()
	if at := c.history.Expires; !at.IsZero() && !now.Before(at) {
		return verdict.DeadLetter(ReasonExpired, verdict.OutcomeOf(fmt.Errorf("%w at %s", ErrExpired, record.FormatTime(at)))), toBeSettled
	}
	plan := s.w.tasks[c.name]
	if plan == nil {
		return verdict.Unknown(c.history, c.suspect(), now, s.w.cfg.UnknownTaskMaxAge,
			verdict.OutcomeOf(fmt.Errorf("%w: the worker has no function %q", ErrUnknownTask, text.Excerpt(c.name)))), toBeSettled
	}
	c.plan, c.started = plan, now
	if plan.timeout > 0 {
		c.due = now.Add(plan.timeout).Add(verdict.Grace)
	}
	return verdict.Verdict{}, toBeCalled
}

// replace starts a slot in place of that of an abandoned call. The new slot first writes the dead letter.
// abandonOverdue has already counted the new slot.
func (s *shift) replace(c *call) {
	go s.slot(c, func() { s.conclude(c, verdict.OutcomeOf(errAbandoned), true) })
}
