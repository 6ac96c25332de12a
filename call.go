package dispatcher

import (
	"container/list"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/contain"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
	"github.com/seed-416683c9/dispatcher/internal/wire"
)

// call is one delivery on its way through a slot and, if its task can be called, one attempt.
type call struct {
	delivery broker.Delivery
	history  record.History
	losses   int    // since the history was written
	at       *feed  // the source of the delivery; for a suspect, the feed whose session fetched it
	name     string // of the task; the message's type until the body is decoded
	uuid     string
	args     []wire.Value
	plan     *taskPlan // nil = not to be called
	run      run
	started  time.Time
	due      time.Time         // started + timeout + grace; zero without a timeout
	over     func(offerAnswer) // lets the next suspect run; nil unless this is a suspect
	stage    atomic.Int32      // callStage
	aside    bool              // it no longer holds a slot; its goroutine ends with it
	claimed  bool              // it was held, and is to be called now

	// Guarded by shift.mu.
	state   callState
	index   int           // in shift.watched; -1 = not there
	overdue *list.Element // in shift.overdue; nil = not there
}

func newCall(d broker.Delivery, at *feed) *call {
	c := &call{delivery: d, history: record.Read(d.Headers), losses: d.Losses, at: at, name: d.Type, uuid: d.ID, index: -1}
	if !at.exact && d.Redelivered && (c.suspect() || at.believes()) {
		c.losses = 1
	}
	return c
}

// suspect reports whether the task is suspected of ending its worker.
func (c *call) suspect() bool { return strings.HasSuffix(c.delivery.Queue, broker.SuspectsSuffix) }

// end lets the next suspect run if c is a suspect. Only the first answer counts.
func (c *call) end(a offerAnswer) {
	if over := c.over; over != nil {
		c.over = nil
		over(a)
	}
}

// firstBegan returns when the first attempt of the task began.
func (c *call) firstBegan() time.Time {
	if c.history.Attempts > 0 {
		if log := record.Log(c.delivery.Headers); len(log) > 0 && !log[0].At.IsZero() && log[0].At.Before(c.started) {
			return log[0].At
		}
	}
	return c.started
}

type callState int

const (
	callRunning   callState = iota
	callAbandoned           // overdue: its delivery is a dead letter and its slot was given to others
	callFinished
)

// callStage is the progress of an attempt. The slot and the timer agree on it, so that no function is called after its
// dead letter was written.
type callStage = int32

const (
	callBinding callStage = iota // its arguments are being decoded, perhaps by methods of their types
	callBegun                    // it is an attempt
	callUnbound                  // abandoned while its arguments were being decoded
)

// invoke binds the arguments, calls the function, and returns how it ended. A panic becomes an error with its stack.
// Each of these steps may run user code, so all of them are counted and watched. The function is not called if the
// arguments do not fit, or if the call was abandoned or the worker was stopped before they were bound.
func (s *shift) invoke(c *call) (o verdict.Outcome) {
	s.callBegins(c)
	defer func() {
		if v := recover(); v != nil {
			stack := contain.Stack()
			o = verdict.OutcomeOf(&PanicError{Value: v, Stack: stack})
			o.Stack = new(atomic.Pointer[string])
			o.Stack.Store(new(string(stack)))
		}
	}()
	bound, err := c.plan.bind(c.args)
	if err != nil || s.tasks.Err() != nil || !c.stage.CompareAndSwap(callBinding, callBegun) {
		return verdict.OutcomeOf(err)
	}
	if hook := s.w.server.cfg.Hooks.Started; hook != nil {
		contain.Call(s.w.log, hook, StartEvent{*c.info(s.w.cfg.Name)})
	}
	ctx, cancel := s.taskContext(c)
	defer cancel()
	if len(c.plan.middleware) > 0 {
		next := func(ctx context.Context) error {
			return c.plan.call(ctx, c.uuid, boundCall{slices.Clone(bound.in)}) // middleware may call it several times, even concurrently
		}
		return verdict.OutcomeOf(wrap(c.plan.middleware, next)(ctx))
	}
	return verdict.OutcomeOf(c.plan.call(ctx, c.uuid, bound))
}

// taskContext returns the context of a call. It makes a new one only for functions that take a context, and for
// middleware.
func (s *shift) taskContext(c *call) (context.Context, context.CancelFunc) {
	if !c.plan.takesContext && len(c.plan.middleware) == 0 {
		return s.tasks, func() {}
	}
	ctx := context.WithValue(s.tasks, taskInfoKey{}, c.info(s.w.cfg.Name))
	if c.plan.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithDeadlineCause(ctx, c.started.Add(c.plan.timeout), ErrTimeout)
}

// callBegins counts the call and, if it has a timeout, starts watching it.
func (s *shift) callBegins(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if !c.due.IsZero() {
		s.watched.add(c)
	}
}

// callEnded stops watching the call and reports whether it had been abandoned. When an abandoned call ends, the next
// overdue one may be abandoned.
func (s *shift) callEnded(c *call) (abandoned bool) {
	s.mu.Lock()
	s.calls--
	abandoned = c.state == callAbandoned
	c.state = callFinished
	s.watched.remove(c)
	if c.overdue != nil {
		s.overdue.Remove(c.overdue)
	}
	var next *call
	if abandoned {
		s.abandoned--
		next = s.abandonOverdue()
	}
	s.mu.Unlock()
	if next != nil {
		s.replace(next)
	}
	return abandoned
}

// conclude judges how a call ended and settles its delivery. If abandoned is true, the call has not ended. conclude
// finishes even if a hook ends this goroutine.
func (s *shift) conclude(c *call, o verdict.Outcome, abandoned bool) {
	if c.stage.Load() != callBegun {
		s.concludeUnbound(c, o, abandoned)
		return
	}
	now := time.Now()
	a := verdict.Attempt{
		Outcome: o, Timeout: c.plan.timeout, Shutdown: s.tasks.Err() != nil, Abandoned: abandoned,
		Number: c.history.Attempts + 1, Asked: c.history.Asked, First: c.firstBegan(), Expires: c.history.Expires, Now: now,
	}
	if a.Timeout > 0 {
		deadline := c.started.Add(a.Timeout)
		a.Late = !now.Before(deadline)
		if a.Shutdown && s.cancelledAt().Before(deadline) {
			a.Late = false // the shutdown came first and ended it
		}
	}
	v := verdict.Judge(a, c.plan.retry)
	v.Made = record.Attempt{Number: a.Number, At: c.started, Duration: now.Sub(c.started), Worker: s.w.cfg.Name, Error: v.Text}
	s.w.server.running.decide(&c.run, v, abandoned)
	if !abandoned {
		s.w.server.running.end(&c.run)
	}
	c.end(oneSuspect)
	defer s.settle(c, v)
	if hook := s.w.server.cfg.Hooks.Finished; hook != nil {
		contain.Call(s.w.log, hook, FinishEvent{*c.info(s.w.cfg.Name), verdictOf(v.Action), o.Err, now.Sub(c.started)})
	}
}

// concludeUnbound settles a call whose arguments were not bound. Its function was not called, so it is no attempt.
func (s *shift) concludeUnbound(c *call, o verdict.Outcome, abandoned bool) {
	switch {
	case !abandoned && o.Err == nil:
		s.settleUncalled(c, verdict.Verdict{Action: verdict.Release})
		return
	case !abandoned:
		s.settleUncalled(c, verdict.DeadLetter(ReasonBadArguments, o))
		return
	}
	v := verdict.DeadLetter(ReasonTimeout, verdict.OutcomeOf(fmt.Errorf("%w of %v: its arguments are still being decoded", ErrTimeout, c.plan.timeout)))
	s.w.server.running.decide(&c.run, v, true)
	c.end(oneSuspect)
	s.settle(c, v)
}

// settleUncalled settles a delivery that is not called, and reports whether the task stays, to be called. The task
// counts as under way until it is settled. Otherwise its copy could come back sooner and end this process, and the
// unsettled original would be a second one.
func (s *shift) settleUncalled(c *call, v verdict.Verdict) (stays bool) {
	defer func() { // even when a hook ends this goroutine
		if stays {
			return
		}
		s.w.server.running.end(&c.run)
		if v.Action == verdict.PutOff { // it would be found again at once
			c.end(noSuspect)
		} else {
			c.end(oneSuspect)
		}
	}()
	return s.settle(c, v)
}
