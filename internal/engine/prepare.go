package engine

import (
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// readiness is the next step of a delivery.
type readiness int

const (
	toBeCalled readiness = iota
	toBeSettled
	isHeld // another call of the task runs; a goroutine of its own waits for that
)

// ready decides the next step of a delivery, and settles it if it is not to be called.
func (s *Shift) ready(c *Call) readiness {
	v, r := s.prepare(c)
	for r == toBeSettled && s.settler.settleUncalled(c, v) {
		c.losses = 0
		v, r = s.admit(c, time.Now())
	}
	return r
}

// prepare identifies the task and makes sure that it does not run already. It runs no user code. If the task is not to
// be called, prepare returns its verdict.
func (s *Shift) prepare(c *Call) (verdict.Verdict, readiness) {
	if c.claimed { // it was held
		return s.admit(c, time.Now())
	}
	if err := s.cfg.Handler.Identify(c); err != nil {
		return verdict.DeadLetter(verdict.ReasonMalformed, verdict.OutcomeOf(err)), toBeSettled
	}
	if why := c.Delivery.Unreadable; why != "" { // its attempts and its expiry are unknown
		err := fmt.Errorf("%w: its headers cannot be read: %s", fault.ErrMalformed, why)
		return verdict.DeadLetter(verdict.ReasonMalformed, verdict.OutcomeOf(err)), toBeSettled
	}
	// This comes first: a task that runs here has neither ended its worker nor expired.
	now := time.Now()
	if v, r := s.shelf.claim(c, now); r != toBeCalled {
		return v, r
	}
	if c.suspect() { // claim may have waited
		now = time.Now()
	}
	return s.admit(c, now)
}

// admit decides whether to call a claimed task.
func (s *Shift) admit(c *Call, now time.Time) (verdict.Verdict, readiness) {
	if v, run := verdict.Losses(c.history, c.losses, c.suspect()); !run {
		return v, toBeSettled
	}
	if at := c.history.Expires; !at.IsZero() && !now.Before(at) {
		err := fmt.Errorf("%w at %s", fault.ErrExpired, record.FormatTime(at))
		return verdict.DeadLetter(verdict.ReasonExpired, verdict.OutcomeOf(err)), toBeSettled
	}
	if err := s.cfg.Handler.Find(c); err != nil {
		return verdict.Unknown(c.history, c.suspect(), now, s.cfg.UnknownMaxAge, verdict.OutcomeOf(err)), toBeSettled
	}
	c.started, c.due = now, dueAt(now, c.Plan.Timeout)
	return verdict.Verdict{}, toBeCalled
}
