package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/contain"
	"github.com/seed-416683c9/dispatcher/internal/engine"
	"github.com/seed-416683c9/dispatcher/internal/taskcontext"
	"github.com/seed-416683c9/dispatcher/internal/text"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
	"github.com/seed-416683c9/dispatcher/internal/wire"
)

// taskPlan is a registered task: how to call it, for how long, and how often.
type taskPlan struct {
	*callPlan
	engine.Plan
	middleware []Middleware
}

// taskCall is a call of the engine's with what it needs to call a task function.
type taskCall struct {
	engine.Call
	args  []wire.Value
	plan  *taskPlan
	bound boundCall
	room  [3]wire.Value // for args, since most tasks have no more: it costs no allocation
}

// taskHandler tells the engine what the messages of tasks mean. It is read-only, but for calls.
type taskHandler struct {
	worker   string
	tasks    map[string]*taskPlan
	maxBytes int       // ServerConfig.MaxBodyBytes
	calls    sync.Pool // of empty *taskCall: a new one would be half of the memory that a task takes
}

func (h *taskHandler) NewCall() *engine.Call {
	t, _ := h.calls.Get().(*taskCall)
	if t == nil {
		t = &taskCall{}
	}
	t.Payload = t
	return &t.Call
}

func (h *taskHandler) Recycle(c *engine.Call) {
	t := c.Payload.(*taskCall)
	*t = taskCall{}
	h.calls.Put(t)
}

// Identify decodes the body. The body's uuid counts before the message's id.
func (h *taskHandler) Identify(c *engine.Call) error {
	if n := len(c.Delivery.Body); h.maxBytes > 0 && n > h.maxBytes {
		return fmt.Errorf("%w: body of %d bytes, the maximum is %d", ErrMalformed, n, h.maxBytes)
	}
	t := c.Payload.(*taskCall)
	task, err := wire.DecodeInto(t.room[:0], c.Delivery.Body, c.ID, c.Name) // publishers write both beside the body, too
	if err != nil {
		return err
	}
	if c.Name = task.Name; task.UUID != "" {
		c.ID = task.UUID
	}
	t.args = task.Args
	return nil
}

func (h *taskHandler) Find(c *engine.Call) error {
	plan := h.tasks[c.Name]
	if plan == nil {
		return fmt.Errorf("%w: the worker has no function %q", ErrUnknownTask, text.Excerpt(c.Name))
	}
	c.Plan, c.Payload.(*taskCall).plan = &plan.Plan, plan
	return nil
}

func (h *taskHandler) Bind(c *engine.Call) (logged string, err error) {
	t := c.Payload.(*taskCall)
	if err = t.plan.bind(&t.bound, t.args); err == nil {
		return "", nil
	}
	if bad, ok := errors.AsType[*ArgumentError](err); ok { // its values are not for the log
		if logged = "want " + bad.Want; bad.Position >= 0 {
			logged = fmt.Sprintf("argument %d: %s", bad.Position, logged)
		}
	}
	return logged, err
}

// Run calls the function inside its middleware.
func (h *taskHandler) Run(ctx context.Context, c *engine.Call) error {
	t := c.Payload.(*taskCall)
	defer t.bound.forget()
	if c.Plan.WantsContext {
		ctx = context.WithValue(ctx, taskcontext.Key{}, infoOf(c, h.worker))
	}
	if len(t.plan.middleware) == 0 {
		return t.plan.call(ctx, c.ID, &t.bound)
	}
	// Middleware may call the function several times, even concurrently, and after it has returned. By then c may be
	// another call.
	plan, id, bound := t.plan, c.ID, t.bound.clone()
	return wrap(plan.middleware, func(ctx context.Context) error { return plan.call(ctx, id, bound.clone()) })(ctx)
}

func (h *taskHandler) Panicked(value any, stack []byte) error {
	return &PanicError{Value: value, Stack: stack}
}

// overlong returns the names of tasks that may run for at least d.
func (h *taskHandler) overlong(d time.Duration) (names []string) {
	for name, plan := range h.tasks {
		if plan.Timeout > 0 && plan.Timeout >= d {
			names = append(names, name)
		}
	}
	return names
}

// observer calls the hooks of a worker.
func (w *Worker) observer() engine.Observer {
	h, log, name := &w.server.cfg.Hooks, w.log, w.cfg.Name
	var o engine.Observer
	if h.WorkerStarted != nil {
		o.WorkerStarted = func() { contain.CallApart(log, h.WorkerStarted, WorkerEvent{name, w.cfg.Queue}) }
	}
	if h.WorkerStopped != nil {
		o.WorkerStopped = func() { contain.CallApart(log, h.WorkerStopped, WorkerEvent{name, w.cfg.Queue}) }
	}
	if h.Started != nil {
		o.Started = func(c *engine.Call) { contain.Call(log, h.Started, StartEvent{*infoOf(c, name)}) }
	}
	if h.Finished != nil {
		o.Finished = func(c *engine.Call, v verdict.Verdict, took time.Duration) {
			contain.Call(log, h.Finished, FinishEvent{*infoOf(c, name), verdictOf(v.Action), v.Err, took})
		}
	}
	if h.Retried != nil {
		o.Retried = func(c *engine.Call, v verdict.Verdict) {
			contain.Call(log, h.Retried, RetryEvent{*infoOf(c, name), v.Delay, v.Err})
		}
	}
	if h.DeadLettered != nil {
		o.DeadLettered = func(c *engine.Call, v verdict.Verdict) {
			contain.Call(log, h.DeadLettered, DeadLetterEvent{*infoOf(c, name), v.Reason, v.Err})
		}
	}
	return o
}

// verdictOf returns the verdict that hooks receive.
func verdictOf(a verdict.Action) Verdict {
	switch a {
	case verdict.Ack:
		return VerdictDone
	case verdict.Discard:
		return VerdictDiscard
	case verdict.RetryLater:
		return VerdictRetry
	case verdict.Release:
		return VerdictRelease
	}
	return VerdictDeadLetter
}
