package systemtest_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// Each error text names a thing once. If the remedy is known, the text says it.
func TestTextsOfPublishErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) {
			c.ReconnectionRetriesForever, c.ReconnectionRetries, c.MaxBodyBytes = false, 2, 200
			c.PublishTimeout = 1400 * time.Millisecond
		})
		w := r.worker("w", tasks{"n": fn(func() {})})
		w.Close()
		text := func(want string, err error) {
			t.Helper()
			if err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		}
		publish := func(task dispatcher.Task) error {
			task.Name, task.UUID = "n", "u"
			return r.server.Publish(&task)
		}
		const where = `publish task "n" ("u") with key "jobs": `
		text(`publish task "n" ("u") with key "nowhere": exchange "jobs": no queue is bound to this routing key: `+
			`bind one with ServerConfig.InitQueues or WorkerConfig.BindingKeys`, publish(dispatcher.Task{RoutingKey: "nowhere"}))
		text(where+`rejected: argument 0: want int8, got 300`, publish(dispatcher.Task{Args: []dispatcher.TaskArgument{{Type: "int8", Value: 300}}}))
		text(where+`task is too large: 361 bytes, the maximum is 200`, publish(dispatcher.Task{Args: dispatcher.Args(strings.Repeat("x", 300))}))
		text(where+`rejected: task is due in 8784h0m1s, the maximum is 8784h0m0s`, publish(dispatcher.Task{Delay: broker.MaxDelay + time.Second}))

		r.chaos.HoldConfirms(true)
		time.AfterFunc(time.Second, r.chaos.Kill)
		text(where+`the session died: unconfirmed`, publish(dispatcher.Task{}))
		r.chaos.HoldConfirms(false)
		<-time.After(10 * time.Second)
		r.chaos.FailOpen(errors.New("dial: refused"))
		r.chaos.Kill()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		text(where+`Service is disconnected: context deadline exceeded`,
			r.server.PublishContext(ctx, &dispatcher.Task{Name: "n", UUID: "u"}))
		// The error says whose deadline ended the publish.
		text(where+`Service is disconnected: context deadline exceeded (PublishTimeout of 1.4s)`,
			r.server.PublishContext(t.Context(), &dispatcher.Task{Name: "n", UUID: "u"}))
		<-r.givenUp
		gone := "the connection was given up at " + r.server.Health(t.Context()).Since.UTC().Format(time.RFC3339) + ": connect, after 2 retries: dial: refused"
		text(where+gone, publish(dispatcher.Task{}))
		text(gone, w.Start(r.server))
		_, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "x", Queue: "x"}, nil)
		text(gone, err)
		if !errors.Is(err, dispatcher.ErrServerClosed) || !errors.Is(err, dispatcher.ErrNotSent) {
			t.Errorf("%v is not ErrServerClosed", err)
		}
		r.server.Close()
		text(where+"server is closed", publish(dispatcher.Task{}))
	})
}

func TestTextsOfConnectErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for retries, want := range map[int]string{0: "connect: down", 2: "connect, after 2 retries: down"} {
			chaos, cfg := awayServer(-1)
			chaos.FailOpen(errors.New("down"))
			cfg.ReconnectionRetries, cfg.ReconnectionRetriesForever = retries, false
			if _, _, err := dispatcher.NewServer(&cfg); err == nil || err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
		}
	})
}

func TestErrorsThatMisbehaveHarmNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var fine atomic.Int32
		r.worker("w", tasks{
			"exits":  fn(func() error { return exitingError{} }),
			"panics": fn(func() error { return nestedError{} }),
			"hangs":  {Timeout: time.Second, Function: func() error { return hangingError{time.After(time.Hour)} }},
			"typed":  fn(func() *dispatcher.ArgumentError { return nil }),
			"other":  fn(func() *dispatcher.ArgumentError { return &dispatcher.ArgumentError{Want: "x"} }),
			"fine":   fn(func() { fine.Add(1) }),
		}, limit(1))
		for _, name := range []string{"exits", "panics", "hangs", "other"} {
			r.publish(name)
			<-time.After(10 * time.Second)
			if d := r.dead(1)[0]; d.Type != name {
				t.Errorf("%s: dead letter of %s", name, d.Type)
			}
			r.publish("fine")
		}
		r.publish("typed")
		<-time.After(2 * time.Hour)
		if fine.Load() != 4 {
			t.Errorf("%d of 4 ran: a slot was lost", fine.Load())
		}
		if s := r.server.Stats(); s.DeadLettered != 4 || s.Succeeded != 5 {
			t.Errorf("stats %+v", s)
		}
	})
}

type (
	exitingError struct{}
	nestedError  struct{}
	hangingError struct{ until <-chan time.Time }
)

func (exitingError) Error() string   { runtime.Goexit(); return "" }
func (nestedError) Error() string    { panic(nestedError{}) }
func (e hangingError) Error() string { <-e.until; return "late" }

func TestAnErrorThatCannotBeNilIsRefusedAtRegistration(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "q"}, tasks{"n": fn(func() exitingError { return exitingError{} })})
	if err == nil {
		t.Error("NewWorker accepted it, so every call would fail")
	}
}

// brokenError panics in its methods when it is a nil pointer that was returned as an error.
type brokenError struct{ inner error }

func (e *brokenError) Error() string { return e.inner.Error() }
func (e *brokenError) Unwrap() error { return e.inner }

// The log, the hooks and the verdict inspect a task's error. None of them may fail if its methods panic.
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
	eventually(t, "all verdicts are counted", func() bool { st := r.server.Stats(); return st.Discarded == 1 && st.Retried == 2 })
}

// A RetryAfter around a broken error is still obeyed.
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
	eventually(t, "the second attempt succeeded", func() bool { return r.server.Stats().Succeeded == 1 })
}

// D2: in gofort/dispatcher, a panic in a task with a timeout ended the process. A panic in a task without one lost the
// task, because it was acked.
func TestD2APanicIsAFailedAttempt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ran := make(chan struct{}, 1)
	r.worker("w", tasks{
		"timed":   {Timeout: time.Minute, Function: func() { panic("boom") }},
		"untimed": fn(func(i int) { _ = []int{}[i] }),
		"nil":     fn(func() { panic(any(nil)) }),
		"goexit":  fn(func() { runtime.Goexit() }),
		"evil":    fn(func() error { return evilError{} }),
		"fine":    fn(func() { ran <- struct{}{} }),
	}, limit(1))
	for name, want := range map[string]string{
		"timed": "boom", "untimed": "out of range", "nil": "panic called with nil", "goexit": "Goexit", "evil": "PANIC",
	} {
		if name == "untimed" {
			r.publish(name, 7)
		} else {
			r.publish(name)
		}
		d := r.dead(1)[0]
		text, _ := d.Headers["x-dispatcher-error"].(string)
		if d.Headers["x-dispatcher-reason"] != "failed" || !strings.Contains(text, want) || d.Type != name {
			t.Errorf("%s: %v", name, d.Headers)
		}
	}
	r.publish("fine")
	wait(t, ran, "task after the panics; the slot is lost")
}

type evilError struct{}

func (evilError) Error() string { panic("in Error") }

func TestGoexitWithATimeoutKeepsTheSlots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.worker("w", tasks{"late": {Timeout: time.Second, Function: func() { <-time.After(time.Minute); runtime.Goexit() }}}, limit(2))
		for range 6 {
			r.publish("late")
		}
		<-time.After(time.Hour)
		if s := r.server.Stats(); s.DeadLettered != 6 || s.Received != 6 {
			t.Errorf("stats %+v", s)
		}
		if w := r.server.Health(t.Context()).Workers[0]; w.Running != 0 || w.Abandoned != 0 {
			t.Errorf("health %+v", w)
		}
	})
}
