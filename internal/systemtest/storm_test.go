package systemtest_test

import (
	"context"
	"errors"
	"flag"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// On RabbitMQ, the full storm takes 18 s on two cores, and 43 s with the race detector. The default is therefore
// smaller. To run the full storm:
//
//	go test -run TestARetryStormLeavesNothingBehind -v ./internal/systemtest -storm.tasks 10000
var rabbitStorm = flag.Int("storm.tasks", 3000, "tasks of the storm on RabbitMQ")

const (
	memoryStorm   = 10_000
	stormAttempts = 6 // all but the last one fail
	// stormMemory limits how much the heap may grow, however many tasks wait in the broker.
	stormMemory = 64 << 20
)

// A storm of retries ends and leaves nothing behind: no message in any queue, and no memory. Not parallel, because all
// tests share the heap.
func TestARetryStormLeavesNothingBehind(t *testing.T) {
	t.Run("memory", func(t *testing.T) { storm(memoryVenue(t), memoryStorm, true) })
	t.Run("rabbitmq", func(t *testing.T) { storm(rabbitVenue(t), *rabbitStorm, false) })
}

// storm makes many tasks fail and retry at once. inside means that the broker is in this process, so its waiting tasks
// are on the heap.
func storm(v *venue, many int, inside bool) {
	s := v.server(func(c *dispatcher.ServerConfig) {
		c.Logger = errorsOnly{v.log}
		c.Retry = policy(dispatcher.RetryPolicy{MaxAttempts: stormAttempts, InitialInterval: 100 * time.Millisecond, Multiplier: 1})
	})
	count, calls := int64(many), int64(many*stormAttempts)
	var called, succeeded, early atomic.Int64
	half, all := make(chan struct{}), make(chan struct{})
	ended := make([]atomic.Int64, count) // when the last call of each task ended, in nanoseconds
	v.worker(s, "w", tasks{"fails": fn(func(ctx context.Context, n int) error {
		info, _ := dispatcher.TaskFromContext(ctx)
		// The shortest pause is 100 ms less a fifth.
		if info.Attempt > 1 && time.Now().UnixNano()-ended[n].Load() < int64(80*time.Millisecond) {
			early.Add(1)
		}
		defer func() { ended[n].Store(time.Now().UnixNano()) }()
		if called.Add(1) == calls/2 {
			close(half)
		}
		if info.Attempt < stormAttempts {
			return errors.New("not yet")
		}
		if succeeded.Add(1) == count {
			close(all)
		}
		return nil
	})}, limit(100))
	within := func(ch <-chan struct{}, what string) {
		select {
		case <-ch:
		case <-time.After(chaosBound):
			v.t.Fatalf("not %s within %v; stats %+v", what, chaosBound, s.Stats())
		}
	}
	before := heap()
	began := time.Now()
	publishMany(v, s, many, func(n int) *dispatcher.Task { return dispatcher.NewTask("fails", n) })
	published := time.Since(began)
	within(half, "half of the calls made")
	midway := heap() - before
	within(all, "all tasks succeeded")
	took := time.Since(began)
	eventually(v.t, "all verdicts are counted", func() bool {
		st := s.Stats()
		return st.Succeeded == count && st.Retried == calls-count
	})
	for _, suffix := range []string{"", ".dead", ".suspects"} {
		v.empty(v.name + suffix)
	}
	left := heap() - before
	if left > stormMemory || midway > stormMemory && !inside {
		v.t.Errorf("the heap grew by %d MiB midway and %d MiB at the end", midway>>20, left>>20)
	}
	if n := early.Load(); n > 0 {
		v.t.Errorf("%d attempts were early", n)
	}
	if st := s.Stats(); called.Load() != calls || st.Received-st.Released != calls || st.DeadLettered+st.Lost+st.Suspected != 0 {
		v.t.Errorf("%d calls, want %d; stats %+v", called.Load(), calls, st)
	}
	v.t.Logf("%d tasks published in %.1f s, %d calls in %.1f s: %.0f a second; heap %+d KiB midway, %+d KiB at the end",
		count, published.Seconds(), calls, took.Seconds(), float64(calls)/took.Seconds(), midway>>10, left>>10)
}
