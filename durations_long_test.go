package dispatcher_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

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
				t.Errorf("cut after a day: %v", err)
			}
			<-failed
			<-failed
			if n := r.inspect("jobs.dead").Ready; n > 1 { // of five attempts after 1, 2, 4 and 8 hours
				t.Errorf("%d dead letters", n)
			}
			if s := r.server.Stats(); s.Postponed == 0 || s.Abandoned != 0 {
				t.Errorf("%+v", s)
			}
		})
	})
}

// The most negative duration means no limit or at once, or is an error.
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
			t.Errorf("%+v", s)
		}
	})
	for _, task := range []dispatcher.Task{{Name: "n", Delay: math.MinInt64}, {Name: "n", Delay: math.MaxInt64}, {Name: "n", NotBefore: time.Unix(1<<60, 0)}} {
		r := newRig(t)
		outcome(t, "publish", r.server.Publish(&task), dispatcher.ErrRejected)
	}
}
