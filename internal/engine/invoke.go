package engine

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/contain"
	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// invoke binds the arguments, calls the function, and returns how it ended. A panic becomes an error with its stack.
// Each of these steps may run user code, so all of them are counted and watched. The function is not called if the
// arguments do not fit, or if the call was abandoned or the worker was stopped before they were bound.
func (s *Shift) invoke(c *Call) (o verdict.Outcome) {
	s.ledger.callBegins(c)
	defer func() {
		if v := recover(); v != nil {
			stack := contain.Stack()
			o = verdict.OutcomeOf(s.cfg.Handler.Panicked(v, stack))
			o.Stack = new(atomic.Pointer[string])
			o.Stack.Store(new(string(stack)))
		}
	}()
	logged, err := s.cfg.Handler.Bind(c)
	if err != nil || s.phases.tasks.Err() != nil || !c.stage.CompareAndSwap(callBinding, callBegun) {
		o = verdict.OutcomeOf(err)
		o.Logged = logged
		return o
	}
	if f := s.cfg.Observer.Started; f != nil {
		f(c)
	}
	ctx, cancel := s.contextOf(c)
	defer cancel()
	return verdict.OutcomeOf(s.cfg.Handler.Run(ctx, c))
}

// contextOf returns the context of a call. It makes a new one only for a call that wants one.
func (s *Shift) contextOf(c *Call) (context.Context, context.CancelFunc) {
	switch {
	case !c.Plan.WantsContext:
		return s.phases.tasks, func() {}
	case c.Plan.Timeout == 0:
		return context.WithCancel(s.phases.tasks)
	}
	return context.WithDeadlineCause(s.phases.tasks, c.started.Add(c.Plan.Timeout), fault.ErrTimeout)
}

// conclude judges how a call ended and settles its delivery. If abandoned is true, the call has not ended. conclude
// finishes even if a hook ends this goroutine.
func (s *Shift) conclude(c *Call, o verdict.Outcome, abandoned bool) {
	if c.stage.Load() != callBegun {
		s.concludeUnbound(c, o, abandoned)
		return
	}
	a := s.attemptOf(c, o, abandoned)
	v, took := verdict.Judge(a, c.Plan.Retry), a.Now.Sub(c.started)
	c.at.ended(c, took)
	v.Made = record.Attempt{Number: a.Number, At: c.started, Duration: took, Worker: s.cfg.Name, Error: v.Text}
	if abandoned {
		s.cfg.Shared.running.decide(&c.run, v)
	} else {
		s.cfg.Shared.running.finish(&c.run, v)
	}
	c.end(oneSuspect)
	defer s.settler.settle(c, v)
	if f := s.cfg.Observer.Finished; f != nil {
		f(c, v, took)
	}
}

// attemptOf describes how a call ended.
func (s *Shift) attemptOf(c *Call, o verdict.Outcome, abandoned bool) verdict.Attempt {
	now := time.Now()
	a := verdict.Attempt{
		Outcome: o, Timeout: c.Plan.Timeout, Shutdown: s.phases.tasks.Err() != nil, Abandoned: abandoned,
		Number: c.Number(), Asked: c.history.Asked, First: c.firstBegan(), Expires: c.history.Expires, Now: now,
	}
	if a.Timeout > 0 {
		deadline := c.started.Add(a.Timeout)
		a.Late = !a.Now.Before(deadline)
		if a.Shutdown && s.phases.cancelled.Before(deadline) {
			a.Late = false // the shutdown came first and ended it
		}
	}
	return a
}

// concludeUnbound settles a call whose arguments were not bound. Its function was not called, so it is no attempt.
func (s *Shift) concludeUnbound(c *Call, o verdict.Outcome, abandoned bool) {
	switch {
	case !abandoned && o.Err == nil:
		s.settler.settleUncalled(c, verdict.Verdict{Action: verdict.Release})
		return
	case !abandoned:
		s.settler.settleUncalled(c, verdict.DeadLetter(verdict.ReasonBadArguments, o))
		return
	}
	err := fmt.Errorf("%w of %v: its arguments are still being decoded", fault.ErrTimeout, c.Plan.Timeout)
	v := verdict.DeadLetter(verdict.ReasonTimeout, verdict.OutcomeOf(err))
	s.cfg.Shared.running.decide(&c.run, v)
	c.end(oneSuspect)
	s.settler.settle(c, v)
}
