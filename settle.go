package dispatcher

import (
	"context"
	"errors"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Carrying out verdicts.

// settle ends a delivery as the verdict says. What cannot be settled because its connection is gone is delivered again by
// the broker. It reports whether the delivery stays instead, to be called: see errStays.
func (s *shift) settle(c *call, v verdict) (stays bool) {
	stats := &s.w.server.stats
	var err error
	switch v.action {
	case ack:
		if err = c.delivery.Ack(); err == nil {
			stats.succeeded.Add(1)
		}
	case discard:
		if err = c.delivery.Ack(); err == nil {
			stats.discarded.Add(1)
			s.w.log.Errorf("worker %q: task %q (%q) is discarded: %s", s.w.cfg.Name, excerpt(c.name), excerpt(c.uuid), logText(v))
		}
	case release:
		err = s.giveBack(c)
	default:
		v, err = s.forward(c, v)
	}
	if err == nil {
		s.w.server.running.settled(&c.run) // first: a hook may end this goroutine
		s.tellForwarded(c, v)
		return false
	}
	if err == errStays {
		return true
	}
	what := "the broker delivers it again"
	switch {
	case errors.Is(err, broker.ErrQueueGone):
		what = "it is gone with its queue"
	case errors.Is(err, broker.ErrSettled):
		what = "it was settled before"
	default:
		stats.lost.Add(1)
	}
	s.w.log.Errorf("worker %q: %s of task %q (%q): %v; %s", s.w.cfg.Name, v.action, excerpt(c.name), excerpt(c.uuid), err, what)
	return false
}

// giveBack returns a delivery whose task was not run, or was interrupted by the shutdown, and is not to be charged for it. A broker
// that cannot tell what was given back from what was lost gets a copy, which nobody has seen before.
func (s *shift) giveBack(c *call) (err error) {
	defer func() {
		if err == nil {
			s.w.server.stats.released.Add(1)
		}
	}()
	if c.at.exact {
		return c.delivery.Release()
	}
	ctx, cancel := context.WithTimeout(s.hard, closeTimeout)
	defer cancel()
	if msg := c.copy(); c.suspect() {
		err = c.delivery.Suspect(ctx, msg)
	} else {
		err = c.delivery.Retry(ctx, msg, 0)
	}
	if err == nil {
		return nil
	}
	return c.delivery.Release() // it may be charged: better than to be held
}

// tellForwarded counts and tells what became of a delivery that was forwarded.
func (s *shift) tellForwarded(c *call, v verdict) {
	stats, hooks, log := &s.w.server.stats, &s.w.server.cfg.Hooks, s.w.log
	worker, name, uuid := s.w.cfg.Name, excerpt(c.name), excerpt(c.uuid)
	if v.action == postpone || v.action == putOff {
		stats.postponed.Add(1)
		if c.history.misses == 0 {
			log.Infof("worker %q: task %q (%q) is put off: %s", worker, name, uuid, logText(v))
		}
		return
	}
	switch v.action {
	case toDeadLetters:
		stats.deadLettered.Add(1)
		log.Errorf("worker %q: task %q (%q) is a dead letter: %s: %s", worker, name, uuid, v.reason, logText(v))
		if hooks.DeadLettered != nil {
			fire(log, hooks.DeadLettered, DeadLetterEvent{*c.info(worker), v.reason, v.err})
		}
	case retryLater:
		stats.retried.Add(1)
		log.Infof("worker %q: task %q (%q): attempt %d failed, next in %v: %s", worker, name, uuid, v.made.Number, v.delay, logText(v))
		if hooks.Retried != nil {
			fire(log, hooks.Retried, RetryEvent{*c.info(worker), v.delay, v.err})
		}
	case toBack:
		log.Infof("worker %q: task %q (%q) was lost with its connection or worker before: moved to the back of the queue", worker, name, uuid)
	case toSuspects:
		stats.suspected.Add(1)
		log.Errorf("worker %q: task %q (%q) was lost with its connection or worker %d times: it runs alone now", worker, name, uuid, v.losses)
		s.suspectMade()
	}
}
