package systemtest_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// D8: in gofort/dispatcher, timeouts removed the limit on concurrency.
func TestD8TimedOutCallsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var now, most atomic.Int32
		gate := make(chan struct{})
		r.worker("w", tasks{"stuck": {Timeout: time.Second, Function: func() {
			raise(&most, now.Add(1))
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
			t.Errorf("%d calls are running; health %+v; want Limit 2 + MaxAbandoned 3", now.Load(), w)
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
			t.Errorf("%d calls are still running", n)
		}
		// The waiting tasks run now. The two timed-out calls in the slots either returned first, and succeeded, or were
		// abandoned when an abandoned call made room.
		if s := r.server.Stats(); s.Abandoned > 5 || s.Succeeded < 5 || s.DeadLettered != s.Abandoned || s.Succeeded+s.DeadLettered != 10 {
			t.Errorf("stats %+v", s)
		}
		if most.Load() != 5 {
			t.Errorf("%d calls ran at once, want 5", most.Load())
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
			close(<-gates) // the oldest call ends and makes room to abandon the overdue one, whose slot starts the next task
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
			t.Errorf("stats %+v: a function that returns nil after its timeout has succeeded", s)
		}
	})
}

func longest(c *dispatcher.ServerConfig) {
	c.PublishTimeout, c.ShutdownTimeout = math.MaxInt64, math.MaxInt64
	c.Retry = &dispatcher.RetryPolicy{MaxAge: math.MaxInt64, InitialInterval: time.Hour}
}

func TestLongestTimeoutsCutNothing(t *testing.T) {
	t.Parallel()
	t.Run("outbox", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, withQueue, plainOutbox, longest)
			down(r, true)
			kept(t, "publish", r.server.Publish(named("1", "jobs")))
			up(r)
			drained(t, r)
			r.server.Close()
			if ids := r.ids("jobs"); len(ids) != 1 {
				t.Errorf("sent %v", ids)
			}
		})
	})
	t.Run("publish", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, withQueue, longest)
			r.chaos.HoldConfirms(true)
			published, closed := make(chan error, 1), make(chan error, 1)
			go func() { published <- r.server.Publish(dispatcher.NewTask("n")) }()
			synctest.Wait()
			go func() { closed <- r.server.Shutdown(context.Background()) }()
			<-time.After(time.Hour)
			r.chaos.HoldConfirms(false)
			if err := errors.Join(<-published, <-closed); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("tasks", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, longest)
			ends, failed := make(chan error, 1), make(chan struct{}, 2)
			r.worker("w", tasks{
				"long": {Timeout: math.MaxInt64, Function: func(ctx context.Context) {
					<-time.After(24 * time.Hour)
					ends <- ctx.Err()
				}},
				"fails": fn(func() error { failed <- struct{}{}; return errors.New("x") }),
			}, func(c *dispatcher.WorkerConfig) { c.UnknownTaskMaxAge = math.MaxInt64 })
			r.publish("long")
			r.publish("fails")
			r.publish("unknown")
			if err := <-ends; err != nil {
				t.Errorf("the task was cancelled within a day: %v", err)
			}
			<-failed
			<-failed
			if n := r.inspect("jobs.dead").Ready; n > 1 { // of five attempts after 1, 2, 4 and 8 hours
				t.Errorf("%d dead letters", n)
			}
			if s := r.server.Stats(); s.Postponed == 0 || s.Abandoned != 0 {
				t.Errorf("stats %+v", s)
			}
		})
	})
}

// The most negative duration means no limit or at once, or it is an error.
func TestNegativeDurationsMeanNoLimitOrAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) { c.ShutdownTimeout = math.MinInt64 })
		ends := make(chan struct{})
		r.worker("w", tasks{"long": fn(func(ctx context.Context) error { <-time.After(24 * time.Hour); close(ends); return ctx.Err() })},
			func(c *dispatcher.WorkerConfig) { c.UnknownTaskMaxAge = math.MinInt64 })
		r.publish("unknown")
		r.dead(1)
		r.publish("long")
		synctest.Wait()
		r.server.Close()
		select {
		case <-ends:
		default:
			t.Error("Close did not wait for the task")
		}
		if s := r.server.Stats(); s.Succeeded != 1 {
			t.Errorf("stats %+v", s)
		}
	})
	for _, task := range []dispatcher.Task{{Name: "n", Delay: math.MinInt64}, {Name: "n", Delay: math.MaxInt64}, {Name: "n", NotBefore: time.Unix(1<<60, 0)}} {
		r := newRig(t)
		outcome(t, "publish", r.server.Publish(&task), dispatcher.ErrRejected)
	}
}

func TestTasksLongerThanTheConsumerTimeoutAreWarnedOf(t *testing.T) {
	t.Parallel()
	v := rabbitVenue(t)
	s := v.server(func(c *dispatcher.ServerConfig) { c.QueueType = "quorum" }) // since 4.3, other queue types have no consumer timeout
	v.worker(s, "w", tasks{
		"long":  {Timeout: 31 * time.Minute, Function: func() {}},
		"edge":  {Timeout: 25*time.Minute - time.Second, Function: func() {}}, // with its grace, and five minutes in the worker
		"short": {Timeout: 24 * time.Minute, Function: func() {}},
		"any":   fn(func() {}),
	})
	if log := v.log.String(); strings.Count(log, "split them queue="+v.name+` worker=w tasks="edge, long" consumer_timeout=30m0s`) != 1 || strings.Count(log, "consumer_timeout=") != 1 {
		t.Error("the log does not warn exactly once about the two long tasks")
	}
}
