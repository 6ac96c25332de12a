package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// Code of users that does what it should not.

// brokenError is what becomes of a nil pointer to an error type that is returned as an error.
type brokenError struct{ inner error }

func (e *brokenError) Error() string { return e.inner.Error() }
func (e *brokenError) Unwrap() error { return e.inner }

// The log, the hooks and the verdict look into what a function returned; each must bear what that does.
func TestAnErrorWhoseMethodsPanicIsAnError(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *dispatcher.ServerConfig) { c.Retry = fast(2) })
	r.worker("w", tasks{
		"returns": fn(func() error { return (*brokenError)(nil) }),
		"panics":  fn(func() { panic((*brokenError)(nil)) }),
		"discard": fn(func() error { return dispatcher.Discard((*brokenError)(nil)) }),
		"last":    fn(func() error { return dispatcher.Permanent((*brokenError)(nil)) }),
	}, limit(1))
	for _, name := range []string{"returns", "panics", "last"} {
		r.publish(name)
		d, want := r.dead(1)[0], "failed"
		if name == "last" {
			want = "permanent"
		}
		if d.Type != name || d.Headers["x-dispatcher-reason"] != want {
			t.Errorf("%s: %v", name, d.Headers)
		}
	}
	r.publish("discard")
	eventually(t, "all is counted", func() bool { st := r.server.Stats(); return st.Discarded == 1 && st.Retried == 2 })
}

// What it wraps is broken, what it says is not.
func TestAWishAroundABrokenErrorCounts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var n atomic.Int32
	r.worker("w", tasks{"again": fn(func() error {
		if n.Add(1) == 1 {
			return dispatcher.RetryAfter(0, (*brokenError)(nil))
		}
		return nil
	})})
	r.publish("again")
	eventually(t, "second attempt", func() bool { return r.server.Stats().Succeeded == 1 })
}

func TestTheServersPolicyIsCopied(t *testing.T) {
	t.Parallel()
	p := fast(2)
	r := newRig(t, func(c *dispatcher.ServerConfig) { c.Retry = p })
	*p = dispatcher.RetryPolicy{MaxAttempts: 1, InitialInterval: -1}
	r.worker("w", tasks{"n": fn(func() error { return errors.New("no") })})
	r.publish("n")
	if d := r.dead(1)[0]; d.Headers["x-dispatcher-attempt"] != int64(2) {
		t.Errorf("headers %v", d.Headers)
	}
}

type hedged struct{}

// A hedge calls the function twice at once.
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
	eventually(t, "done", func() bool { return r.server.Stats().Succeeded == 1 })
	if calls.Load() != 3 {
		t.Errorf("sum %d", calls.Load())
	}
}

// Whoever closes from inside waits for itself, for no longer than the bound, and leaves nothing behind.
func TestClosingFromInsideAHookIsBounded(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Started", "Finished", "Retried", "DeadLettered", "Published", "Disconnected", "Reconnected", "WorkerStarted", "WorkerStopped"} {
		for _, what := range []string{"server", "worker"} {
			t.Run(name+" "+what, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var server atomic.Pointer[dispatcher.Server]
					took := make(chan time.Duration, 1)
					hook := func() {
						s := server.Swap(nil)
						if s == nil {
							return
						}
						began := time.Now()
						if w, err := s.GetWorkerByName("w"); err != nil {
							t.Error(err)
						} else if what == "worker" {
							w.Close()
						} else {
							s.Close()
						}
						took <- time.Since(began)
					}
					r := newRig(t, func(c *dispatcher.ServerConfig) {
						c.Retry = fast(2)
						h := &c.Hooks
						switch name {
						case "Started":
							h.Started = func(dispatcher.StartEvent) { hook() }
						case "Finished":
							h.Finished = func(dispatcher.FinishEvent) { hook() }
						case "Retried":
							h.Retried = func(dispatcher.RetryEvent) { hook() }
						case "DeadLettered":
							h.DeadLettered = func(dispatcher.DeadLetterEvent) { hook() }
						case "Published":
							h.Published = func(dispatcher.PublishEvent) { hook() }
						case "Disconnected":
							h.Disconnected = func(dispatcher.ConnectionEvent) { hook() }
						case "Reconnected":
							h.Reconnected = func(dispatcher.ConnectionEvent) { hook() }
						case "WorkerStarted":
							h.WorkerStarted = func(dispatcher.WorkerEvent) { hook() }
						case "WorkerStopped":
							h.WorkerStopped = func(dispatcher.WorkerEvent) { hook() }
						}
					})
					w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "jobs", BindingKeys: []string{"jobs"}}, tasks{"n": fn(func() error { return errors.New("no") })})
					if err != nil {
						t.Fatal(err)
					}
					server.Store(r.server)
					start(t, w, r.server)
					_ = r.server.Publish(dispatcher.NewTask("n"))
					<-time.After(time.Minute)
					r.chaos.Kill()
					<-time.After(time.Minute)
					if what == "worker" || len(took) == 0 {
						r.server.Close()
					}
					if d := <-took; d > 50*time.Second {
						t.Errorf("took %v", d)
					}
					<-time.After(time.Minute)
					if n := r.chaos.Live(); n != 0 {
						t.Errorf("%d live sessions", n)
					}
				})
			})
		}
	}
}
