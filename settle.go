package dispatcher

import (
	"context"
	"errors"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Carrying out verdicts.

// settle ends a delivery as the verdict says. What cannot be settled because its connection is gone is delivered again by
// the broker.
func (s *shift) settle(c *call, v verdict) {
	stats := &s.w.server.stats
	var err error
	switch v.action {
	case ack:
		if err = c.delivery.Ack(); err == nil {
			stats.succeeded.Add(1)
		}
	case release:
		if err = c.delivery.Release(); err == nil {
			stats.released.Add(1)
		}
	case toDeadLetters:
		err = s.deadLetter(c, v)
	}
	if err == nil {
		return
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
}

// deadLetter keeps the delivery open until its dead letter is confirmed: trying again with pauses, until the connection is
// lost or the worker's time is up, when the delivery is given back. It must never be given back at once: that is a
// requeue loop.
func (s *shift) deadLetter(c *call, v verdict) error {
	msg := deadLetterMessage(c, v, s.w.cfg.Name, time.Now())
	pauses := newBackOff(100*time.Millisecond, 30*time.Second, 0.5)
	for {
		err := s.deadLetterOnce(c.delivery, msg)
		switch {
		case err == nil:
			s.w.server.stats.deadLettered.Add(1)
			s.w.log.Errorf("worker %q: task %q (%q) is a dead letter: %s: %s", s.w.cfg.Name, excerpt(c.name), excerpt(c.uuid), v.reason, logText(v))
			return nil
		case errors.Is(err, broker.ErrDeliveryLost), errors.Is(err, broker.ErrSettled), errors.Is(err, broker.ErrSessionLost):
			return err
		}
		s.w.log.Errorf("worker %q: dead letter of task %q (%q): %v; trying again", s.w.cfg.Name, excerpt(c.name), excerpt(c.uuid), err)
		if errors.Is(err, broker.ErrUnroutable) {
			s.redeclare() // somebody has deleted the queue of dead letters
		}
		if err := s.awaitRetry(c.delivery, pauses.NextBackOff(), err); err != nil {
			return err
		}
		if s.settling.Err() != nil || s.tasks.Err() != nil {
			return c.delivery.Release()
		}
	}
}

func (s *shift) deadLetterOnce(d broker.Delivery, msg broker.Message) error {
	ctx, cancel := context.WithTimeout(s.hard, s.w.server.cfg.PublishTimeout)
	defer cancel()
	return d.DeadLetter(ctx, msg)
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
