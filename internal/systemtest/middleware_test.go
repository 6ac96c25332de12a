package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

type ctxKey struct{}

func TestMiddlewareWrapsTheFunctionInOrder(t *testing.T) {
	t.Parallel()
	var st story
	named := func(name string) dispatcher.Middleware {
		return func(next dispatcher.TaskFunc) dispatcher.TaskFunc {
			return func(ctx context.Context) error {
				info, ok := dispatcher.TaskFromContext(ctx)
				_, deadline := ctx.Deadline()
				st.add("%s before %s (%v, deadline %v)", name, info.Name, ok, deadline)
				err := next(context.WithValue(ctx, ctxKey{}, name))
				st.add("%s after: %v", name, err)
				return err
			}
		}
	}
	r := newRig(t)
	var calls atomic.Int32
	r.worker("w", tasks{
		"ctx": {Timeout: time.Minute, Middleware: []dispatcher.Middleware{named("task")}, Function: func(ctx context.Context) error {
			st.add("call with %v", ctx.Value(ctxKey{}))
			return errors.New("no")
		}},
		"plain":   fn(func() { calls.Add(1) }),
		"skipped": {Function: func() { calls.Add(100) }, Middleware: []dispatcher.Middleware{func(dispatcher.TaskFunc) dispatcher.TaskFunc { return func(context.Context) error { return nil } }}},
		"panics":  {Function: func() { calls.Add(100) }, Middleware: []dispatcher.Middleware{func(dispatcher.TaskFunc) dispatcher.TaskFunc { panic("middleware") }}},
	}, func(c *dispatcher.WorkerConfig) {
		c.Middleware = []dispatcher.Middleware{named("outer"), named("inner")}
	}, limit(1))
	for _, name := range []string{"ctx", "plain", "skipped", "panics"} {
		r.publish(name)
	}
	dead := r.dead(2)
	if got := dead[1].Headers["x-dispatcher-error"]; got != "task panicked: middleware" {
		t.Errorf("error %v", got)
	}
	want := `outer before ctx (true, deadline true)
inner before ctx (true, deadline true)
task before ctx (true, deadline true)
call with task
task after: no
inner after: no
outer after: no
outer before plain (true, deadline false)
inner before plain (true, deadline false)
inner after: <nil>
outer after: <nil>`
	if got := st.String(); !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if s := r.server.Stats(); s.Succeeded != 2 || calls.Load() != 1 {
		t.Errorf("%d calls, stats %+v", calls.Load(), s)
	}
}

func TestNilMiddlewareIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for what, c := range map[string]struct {
		worker []dispatcher.Middleware
		task   []dispatcher.Middleware
	}{"WorkerConfig.Middleware": {worker: make([]dispatcher.Middleware, 1)}, "TaskConfig.Middleware": {task: make([]dispatcher.Middleware, 1)}} {
		_, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "q", Middleware: c.worker},
			tasks{"t": {Function: func() {}, Middleware: c.task}})
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

type hedged struct{}

// A hedging middleware calls the function twice at once.
func TestMiddlewareMayCallNextTwiceAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var calls atomic.Int32
	hedge := func(next dispatcher.TaskFunc) dispatcher.TaskFunc {
		return func(ctx context.Context) error {
			first := make(chan error, 1)
			go func() { first <- next(context.WithValue(ctx, hedged{}, 1)) }()
			return errors.Join(next(context.WithValue(ctx, hedged{}, 2)), <-first)
		}
	}
	r.worker("w", tasks{"n": {Middleware: []dispatcher.Middleware{hedge}, TaskUUIDAsFirstArg: true, Function: func(ctx context.Context, uuid string, n int) error {
		if n != 7 || uuid == "" {
			return fmt.Errorf("got %q, %d", uuid, n)
		}
		calls.Add(int32(ctx.Value(hedged{}).(int)))
		return nil
	}}})
	r.publish("n", 7)
	eventually(t, "the task has succeeded", func() bool { return r.server.Stats().Succeeded == 1 })
	if calls.Load() != 3 {
		t.Errorf("the calls add up to %d, want 3", calls.Load())
	}
}

// A middleware that gave up on the function may call it later, when the worker has gone on to other tasks.
func TestMiddlewareMayCallNextAfterItHasReturned(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	type call struct {
		uuid string
		n    int
	}
	calls := make(chan call, 100)
	later := make(chan dispatcher.TaskFunc, 1)
	keep := func(next dispatcher.TaskFunc) dispatcher.TaskFunc {
		return func(context.Context) error { later <- next; return nil }
	}
	record := func(uuid string, n int) { calls <- call{uuid, n} }
	r.worker("w", tasks{
		"kept": {Middleware: []dispatcher.Middleware{keep}, TaskUUIDAsFirstArg: true, Function: record},
		"t":    {TaskUUIDAsFirstArg: true, Function: record},
	}, limit(1))
	kept := r.publish("kept", 7)
	next := <-later
	for i := range 100 {
		task := r.publish("t", i)
		if got := <-calls; got != (call{task.UUID, i}) {
			t.Fatalf("got %v, want %q, %d", got, task.UUID, i)
		}
	}
	if err := next(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := <-calls; got != (call{kept.UUID, 7}) {
		t.Errorf("got %v, want %q, 7", got, kept.UUID)
	}
}
