package dispatcher_test

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
)

// D8: in gofort/dispatcher, timeouts removed the bound on concurrency.
func TestD8TimedOutCallsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var now, most atomic.Int32
		gate := make(chan struct{})
		r.worker("w", tasks{"stuck": {Timeout: time.Second, Function: func() {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-gate
			now.Add(-1)
		}}}, limit(2), func(c *dispatcher.WorkerConfig) { c.MaxAbandoned = 3 })
		for range 10 {
			r.publish("stuck")
		}
		<-time.After(time.Minute)
		synctest.Wait()
		w := r.server.Health(t.Context()).Workers[0]
		if now.Load() != 5 || w.Running != 5 || w.Abandoned != 3 {
			t.Errorf("%d calls run; health %+v; want Limit 2 + MaxAbandoned 3", now.Load(), w)
		}
		if w.Ready != 5 || w.Dead != 3 {
			t.Errorf("%d waiting, %d dead; want 5 and 3", w.Ready, w.Dead)
		}
		for _, d := range r.dead(3) {
			if d.Headers["x-dispatcher-reason"] != "timeout" {
				t.Errorf("reason %v", d.Headers["x-dispatcher-reason"])
			}
		}
		close(gate)
		synctest.Wait()
		if n := now.Load(); n != 0 {
			t.Errorf("%d calls still run", n)
		}
		// Those that waited run now. The two overdue ones at the bound either returned first, and their work is done, or were
		// abandoned in the moment an abandoned call made room.
		if s := r.server.Stats(); s.Abandoned > 5 || s.Succeeded < 5 || s.DeadLettered != s.Abandoned || s.Succeeded+s.DeadLettered != 10 {
			t.Errorf("stats %+v", s)
		}
		if most.Load() != 5 {
			t.Errorf("%d at once, want 5", most.Load())
		}
	})
}

func TestAnAbandonedCallThatEndsMakesRoomForTheNextOverdueOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gates := make(chan chan struct{}, 10)
		r.worker("w", tasks{"stuck": {Timeout: time.Second, Function: func() {
			g := make(chan struct{})
			gates <- g
			<-g
		}}}, limit(1), func(c *dispatcher.WorkerConfig) { c.MaxAbandoned = 1 })
		for range 4 {
			r.publish("stuck")
		}
		for range 4 {
			<-time.After(10 * time.Second)
			close(<-gates) // the oldest call ends; its room goes to the overdue one, whose slot starts the next task
		}
		<-time.After(10 * time.Second)
		for len(gates) > 0 {
			close(<-gates)
		}
		synctest.Wait()
		if s := r.server.Stats(); s.Received != 4 || s.DeadLettered+s.Succeeded != 4 {
			t.Errorf("stats %+v, want 4 received and settled", s)
		}
		if w := r.server.Health(t.Context()).Workers[0]; w.Running != 0 || w.Abandoned != 0 {
			t.Errorf("health %+v", w)
		}
	})
}

func TestWithoutAbandoningAnOverdueCallKeepsItsSlot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate := make(chan struct{})
		r.worker("w", tasks{"stuck": {TimeoutSeconds: 1, Function: func() error { <-gate; return errors.New("late") }}},
			limit(1), func(c *dispatcher.WorkerConfig) { c.MaxAbandoned = -1 })
		r.publish("stuck")
		r.publish("stuck")
		<-time.After(time.Hour)
		if w := r.server.Health(t.Context()).Workers[0]; w.Running != 1 || w.Ready != 1 {
			t.Errorf("health %+v, want one running and one waiting", w)
		}
		close(gate)
		for _, d := range r.dead(2) {
			if d.Headers["x-dispatcher-worker"] != "w" {
				t.Errorf("headers %v", d.Headers)
			}
		}
	})
}

func TestTimeoutCancelsTheContextWithItsCause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		began := time.Now()
		r.worker("w", tasks{
			"obeys": {Timeout: 5 * time.Second, Function: func(ctx context.Context) error {
				if at, ok := ctx.Deadline(); !ok || at.Sub(began) != 5*time.Second {
					t.Errorf("deadline %v, %v", at, ok)
				}
				<-ctx.Done()
				if !errors.Is(ctx.Err(), context.DeadlineExceeded) || !errors.Is(context.Cause(ctx), dispatcher.ErrTimeout) {
					t.Errorf("err %v, cause %v", ctx.Err(), context.Cause(ctx))
				}
				return ctx.Err()
			}},
			"just done": {Timeout: 5 * time.Second, Function: func(ctx context.Context) error { <-ctx.Done(); return nil }},
		})
		r.publish("obeys")
		d := r.dead(1)[0]
		if d.Headers["x-dispatcher-reason"] != "timeout" || time.Since(began) != 5*time.Second {
			t.Errorf("reason %v after %v", d.Headers["x-dispatcher-reason"], time.Since(began))
		}
		r.publish("just done")
		<-time.After(10 * time.Second)
		if s := r.server.Stats(); s.Succeeded != 1 || s.DeadLettered != 1 || s.Abandoned != 0 {
			t.Errorf("stats %+v: a function that returns nil has done its work", s)
		}
	})
}

// D2: a panic in a task with a timeout ended gofort/dispatcher's process; one without was acknowledged, which lost the task.
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
	wait(t, ran, "task after the panics: the slot is lost")
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
