package dispatcher_test

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

const (
	// stormTasks fail stormAttempts-1 times each.
	stormTasks    = 10_000
	stormAttempts = 6
	// stormMemory bounds what the heap may grow by, however many tasks wait in the broker.
	stormMemory = 64 << 20
)

// A storm of retries ends, and leaves nothing behind: no message in any queue, and no memory. Not parallel: the heap is everybody's.
func TestARetryStormLeavesNothingBehind(t *testing.T) {
	t.Run("memory", func(t *testing.T) { storm(memoryVenue(t), true) })
	t.Run("rabbitmq", func(t *testing.T) { storm(rabbitVenue(t), false) })
}

// storm: inside says that the broker is in this process, and what waits there is on the heap.
func storm(v *venue, inside bool) {
	errs := &errorsOnly{v.log}
	s := v.server(func(c *dispatcher.ServerConfig) {
		c.Logger = errs // of 50,000 retries
		c.Retry = policy(dispatcher.RetryPolicy{MaxAttempts: stormAttempts, InitialInterval: 100 * time.Millisecond, Multiplier: 1})
	})
	var calls, tooEarly atomic.Int64
	half, all := make(chan struct{}), make(chan struct{})
	var succeeded atomic.Int64
	last := make([]atomic.Int64, stormTasks) // when the last call of a task ended, in nanoseconds
	v.worker(s, "w", tasks{"fails": fn(func(ctx context.Context, n int) error {
		info, _ := dispatcher.TaskFromContext(ctx)
		// The shortest pause is 100 ms less a fifth.
		if now := time.Now().UnixNano(); info.Attempt > 1 && now-last[n].Load() < int64(80*time.Millisecond) {
			tooEarly.Add(1)
		}
		if calls.Add(1) == stormTasks*stormAttempts/2 {
			close(half)
		}
		defer func() { last[n].Store(time.Now().UnixNano()) }()
		if info.Attempt < stormAttempts {
			return errors.New("not yet")
		}
		if succeeded.Add(1) == stormTasks {
			close(all)
		}
		return nil
	})}, limit(100))
	atFirst := heap()
	began := time.Now()
	publishMany(v, s, stormTasks, func(n int) *dispatcher.Task { return dispatcher.NewTask("fails", n) })
	published := time.Since(began)
	wait(v.t, half, "half of the calls")
	midway := heap() - atFirst
	select {
	case <-all:
	case <-time.After(chaosBound):
		v.t.Fatalf("%d of %d tasks have succeeded within %v, %d calls; stats %+v", succeeded.Load(), stormTasks, chaosBound, calls.Load(), s.Stats())
	}
	took := time.Since(began)
	eventually(v.t, "acknowledged", func() bool { return s.Stats().Succeeded == stormTasks })
	for _, suffix := range []string{"", ".dead", ".suspects"} {
		v.empty(v.name + suffix)
	}
	left := heap() - atFirst
	if left > stormMemory || midway > stormMemory && !inside {
		v.t.Errorf("the heap has grown by %d MiB midway and %d MiB in the end", midway>>20, left>>20)
	}
	if n := tooEarly.Load(); n > 0 {
		v.t.Errorf("%d attempts were early", n)
	}
	st := s.Stats()
	if calls.Load() != stormTasks*stormAttempts || st.Retried != stormTasks*(stormAttempts-1) || st.Received != stormTasks*stormAttempts || st.DeadLettered+st.Lost+st.Suspected != 0 {
		v.t.Errorf("%d calls, stats %+v", calls.Load(), st)
	}
	v.t.Logf("%d tasks published in %.1f s, %d calls in %.1f s: %.0f a second; heap %+d KiB midway, %+d KiB in the end",
		stormTasks, published.Seconds(), calls.Load(), took.Seconds(), float64(calls.Load())/took.Seconds(), midway>>10, left>>10)
}

// heap is how much is in use on the heap.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// publishMany publishes n tasks in batches.
func publishMany(v *venue, s *dispatcher.Server, n int, task func(int) *dispatcher.Task) {
	v.t.Helper()
	const size = 500
	for from := 0; from < n; from += size {
		batch := make([]*dispatcher.Task, min(size, n-from))
		for i := range batch {
			batch[i] = task(from + i)
		}
		if errs := s.PublishBatch(v.t.Context(), batch); errs != nil {
			v.t.Fatal(errors.Join(errs...))
		}
	}
}

// errorsOnly leaves out what happens thousands of times.
type errorsOnly struct{ *recorder }

func (errorsOnly) Info(...interface{})          {}
func (errorsOnly) Infof(string, ...interface{}) {}
