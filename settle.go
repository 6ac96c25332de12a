package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Carrying out verdicts.

// settle ends a delivery as the verdict says. What cannot be settled because its connection is gone is delivered again by
// the broker. It reports whether the delivery is settled.
func (s *shift) settle(c *call, v verdict) bool {
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
		err = s.forward(c, v)
	}
	if err == nil {
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

// forward keeps the delivery open until the copy that the verdict asks for is confirmed: trying again with pauses, until
// the connection is lost or the worker's time is up, when the delivery is given back. It must never be given back at once: that
// is a requeue loop.
func (s *shift) forward(c *call, v verdict) error {
	msg := c.forwarded(v, s.w.cfg.Name, time.Now())
	pauses := newBackOff(100*time.Millisecond, 30*time.Second, 0.5)
	slim, bare := false, false
	for {
		err := s.forwardOnce(c, v, msg)
		switch {
		case err == nil:
			s.forwardDone(c, v)
			return nil
		case errors.Is(err, broker.ErrDeliveryLost), errors.Is(err, broker.ErrSettled), errors.Is(err, broker.ErrSessionLost):
			return err
		case errors.Is(err, errors.ErrUnsupported) && v.action != toDeadLetters:
			s.w.log.Errorf("worker %q: %s of task %q (%q): %v; kept as a dead letter", s.w.cfg.Name, v.action, excerpt(c.name), excerpt(c.uuid), err)
			v = v.withoutDelays()
			msg = c.forwarded(v, s.w.cfg.Name, time.Now())
			continue
		case errors.Is(err, broker.ErrRejected) && !errors.Is(err, broker.ErrUnroutable) && !slim:
			slim = true // its own headers may have made it too large
			slimDown(msg.Headers)
			continue
		// They came so large that there is no room for ours. To wait with it would hold a slot for ever, and as many such messages as
		// there are slots would stop the worker. A dead letter needs less room than what is sent through delays.
		case errors.Is(err, broker.ErrHeadersTooLarge) && v.action != toDeadLetters:
			made := v.made
			v = deadLetter(ReasonMalformed, outcomeOf(fmt.Errorf("%w: %w; %s: %s", ErrMalformed, broker.ErrHeadersTooLarge, v.action, v.text)))
			v.made = made
			msg, slim = c.forwarded(v, s.w.cfg.Name, time.Now()), false
			continue
		case errors.Is(err, broker.ErrHeadersTooLarge) && !bare:
			bare = true
			bareHeaders(msg.Headers)
			continue
		}
		s.w.log.Errorf("worker %q: %s of task %q (%q): %v; trying again", s.w.cfg.Name, v.action, excerpt(c.name), excerpt(c.uuid), err)
		if errors.Is(err, broker.ErrUnroutable) {
			s.redeclare() // somebody has deleted the queue
		}
		if err := s.awaitRetry(c.delivery, pauses.NextBackOff(), err); err != nil {
			return err
		}
		if s.settling.Err() != nil || s.tasks.Err() != nil {
			return s.giveBack(c)
		}
	}
}

func (s *shift) forwardOnce(c *call, v verdict, msg broker.Message) error {
	ctx, cancel := context.WithTimeout(s.hard, s.w.server.cfg.PublishTimeout)
	defer cancel()
	switch v.action {
	case toDeadLetters:
		return c.delivery.DeadLetter(ctx, msg)
	case toSuspects, putOff:
		return c.delivery.Suspect(ctx, msg)
	default:
		return c.delivery.Retry(ctx, msg, v.delay)
	}
}

// forwardDone counts and tells what has been done.
func (s *shift) forwardDone(c *call, v verdict) {
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

// awaitRetry waits for d, or until trying is over, and has Health say why meanwhile. The error: the delivery is lost.
func (s *shift) awaitRetry(d broker.Delivery, pause time.Duration, why error) error {
	s.stuckBy(+1, why)
	defer s.stuckBy(-1, nil)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.settling.Done():
	case <-s.tasks.Done():
	case <-d.Lost():
		return broker.ErrDeliveryLost
	}
	return nil
}

// redeclare makes the worker's queues again, if there is a connection.
func (s *shift) redeclare() {
	session, err := s.w.server.sup.session()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.hard, openTimeout)
	defer cancel()
	if err := session.Declare(ctx, s.w.topology()); err != nil {
		s.w.log.Errorf("worker %q: %v", s.w.cfg.Name, err)
	}
}

// stuckBy counts, for Health, the deliveries that cannot be settled now.
func (s *shift) stuckBy(n int, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck += n
	if why != nil {
		s.err = why
	}
}
