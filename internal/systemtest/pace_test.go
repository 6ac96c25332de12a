package systemtest_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// A worker of short tasks prefetches more than its limit, also after its link was lost.

// short makes the only worker of s run short tasks until it prefetches at least n.
func short(v *venue, s *dispatcher.Server, n int) {
	v.t.Helper()
	published := int64(0)
	eventually(v.t, fmt.Sprintf("a prefetch of %d", n), func() bool {
		batch := numberedTasks("short", 500)
		if errs := s.PublishBatch(v.t.Context(), batch); errs != nil {
			v.t.Fatal(errs)
		}
		published += int64(len(batch))
		return s.Health(v.t.Context()).Workers[0].Prefetch >= n
	})
	eventually(v.t, "the short tasks have run", func() bool { return s.Stats().Succeeded >= published })
}

var shortTask = fn(func(int) {})

// A worker with long tasks prefetches its limit. With short ones it prefetches more.
func TestThePrefetchFollowsTheTasks(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		var calls atomic.Int32
		gate := make(chan struct{})
		v.worker(s, "w", tasks{"short": shortTask, "long": fn(func() { calls.Add(1); <-gate })}, limit(2))
		prefetched := func() int { return s.Health(v.t.Context()).Workers[0].Prefetch }
		if n := prefetched(); n != 2 {
			v.t.Errorf("the prefetch is %d at first, want the limit", n)
		}
		short(v, s, 100)
		for range 2 {
			v.publish(s, "long")
		}
		eventually(v.t, "two long calls", func() bool { return calls.Load() == 2 })
		// more than it may have fetched: others, if there were any, would be busy
		batch := numberedTasks("short", 1500)
		if errs := s.PublishBatch(v.t.Context(), batch); errs != nil {
			v.t.Fatal(errs)
		}
		eventually(v.t, "the prefetch is the limit again", func() bool { return prefetched() == 2 })
		if n := s.Health(v.t.Context()).Workers[0].Running; n != 2 {
			v.t.Errorf("%d calls run, want 2", n)
		}
		close(gate)
		v.empty(v.name)
	})
}

// Tasks that were fetched because others were short do not wait behind one that takes long while another worker is
// idle.
func TestNoTaskWaitsBehindALongOneWhileAnotherWorkerIsIdle(t *testing.T) {
	t.Parallel()
	everyQueue(t, func(v *venue) {
		const n = 300
		s := v.server()
		gate, entered := make(chan struct{}), make(chan struct{})
		v.worker(s, "w", tasks{
			"short": shortTask,
			"long":  fn(func() { close(entered); <-gate }),
			"here":  fn(func(int) { v.t.Error("a task ran in the worker of the long one") }),
		}, limit(1))
		short(v, s, 100)
		batch := []*dispatcher.Task{dispatcher.NewTask("long")}
		for i := range n {
			batch = append(batch, dispatcher.NewTask("here", i))
		}
		if errs := s.PublishBatch(v.t.Context(), batch); errs != nil {
			v.t.Fatal(errs)
		}
		wait(v.t, entered, "long call")

		var mu sync.Mutex
		ran := map[int]int{}
		other := v.server()
		v.worker(other, "other", tasks{"here": fn(func(i int) { mu.Lock(); ran[i]++; mu.Unlock() })}, limit(1))
		all := func() bool { mu.Lock(); defer mu.Unlock(); return len(ran) == n }
		eventually(v.t, "the other worker has run all of them", all)
		close(gate)
		v.empty(v.name)
		v.empty(v.name + ".suspects")
		mu.Lock()
		defer mu.Unlock()
		for i, times := range ran {
			if times != 1 {
				v.t.Errorf("task %d ran %d times", i, times)
			}
		}
		a, b := s.Stats(), other.Stats()
		v.t.Logf("%d given back, %d charged", a.Released, a.Postponed+b.Postponed)
		most := int64(0)
		if v.config.QueueType == "quorum" {
			most = n // it marks what is on its way to a subscription that is cancelled like a loss
		}
		if a.Postponed+b.Postponed > most || a.Lost+a.Suspected+b.Lost+b.Suspected != 0 || a.Released == 0 {
			v.t.Errorf("stats %+v and %+v", a, b)
		}
	})
}

// A single worker with a limit of 1 keeps the order of its tasks, although some take long: there is nobody to give the
// others to.
func TestASingleWorkerKeepsTheOrderWhateverItsTasksTake(t *testing.T) {
	t.Parallel()
	everyQueue(t, func(v *venue) {
		inOrder(v, v.server(), 100, 400, func(ctx context.Context, i int) {
			if i%100 == 50 {
				pause(ctx, 600*time.Millisecond) // several times as long as it takes to notice
			}
		})
	})
}

// The order is also kept if the long call ends while the worker lowers its prefetch.
func TestASingleWorkerKeepsTheOrderWhileItsPrefetchIsLowered(t *testing.T) {
	t.Parallel()
	everyQueue(t, func(v *venue) {
		s := v.server()
		inOrder(v, s, 300, 3000, func(ctx context.Context, i int) {
			for i == 0 && s.Health(ctx).Workers[0].Prefetch > 1 && pause(ctx, time.Millisecond) {
			}
		})
	})
}

// inOrder lets a worker with a limit of 1 prefetch at least ahead tasks, and checks that it then runs n in their order.
func inOrder(v *venue, s *dispatcher.Server, ahead, n int, run func(context.Context, int)) {
	v.t.Helper()
	var order []int
	var mu sync.Mutex
	v.worker(s, "w", tasks{
		"short": shortTask,
		"next": fn(func(ctx context.Context, i int) {
			run(ctx, i)
			mu.Lock()
			defer mu.Unlock()
			order = append(order, i)
		}),
	}, limit(1))
	short(v, s, ahead)
	batch := numberedTasks("next", n)
	if errs := s.PublishBatch(v.t.Context(), batch); errs != nil {
		v.t.Fatal(errs)
	}
	ran := func() int { mu.Lock(); defer mu.Unlock(); return len(order) }
	eventually(v.t, "all have run", func() bool { return ran() >= n })
	mu.Lock()
	defer mu.Unlock()
	if !slices.IsSorted(order) || len(order) != n {
		v.t.Errorf("%d calls, in this order: %v", len(order), order)
	}
}

// The acks of short tasks do not wait for a long one that was fetched before them, and neither do the short tasks.
func TestShortTasksDoNotWaitForALongOneOfTheSameWorker(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	const n = 10_000
	var quick atomic.Int32
	gate, entered := make(chan struct{}), make(chan struct{})
	r.worker(tasks{
		"long":  fn(func() { close(entered); <-gate }),
		"short": fn(func(int) { quick.Add(1) }),
	}, limit(10))
	r.publish("long")
	wait(t, entered, "long call")
	batch := numberedTasks("short", n)
	if errs := r.server.PublishBatch(t.Context(), batch); errs != nil {
		t.Fatal(errs)
	}
	eventually(t, "the short ones have run", func() bool { return quick.Load() == n })
	// The broker has all their acks when it gives back only the long one.
	eventually(t, "only one delivery is unsettled", func() bool { return unsettled(t, r.name) == 1 })
	close(gate)
	eventually(t, "the long one is acked", func() bool { return r.server.Stats().Succeeded == n+1 })
}

// A worker is killed while it prefetches many short tasks. All of them run elsewhere, and none is suspected.
func TestAKilledWorkerWithALargePrefetchChargesNoTaskTwice(t *testing.T) {
	if order := os.Getenv(chaosWorkerVar); order != "" {
		workerMain(t, order, tasks{"quick": fn(func(ctx context.Context, n int) error {
			pause(ctx, time.Millisecond)
			_, err := fmt.Printf("ran %d\n", n)
			return err
		})})
		return
	}
	t.Parallel()
	r := newRabbit(t, func(c *dispatcher.ServerConfig) { c.Logger = nil })
	ctx, cancel := context.WithTimeout(t.Context(), chaosBound)
	defer cancel()
	const total, enough = 6_000, 2_000
	r.newWorker(nil) // declares the queues
	batch := numberedTasks("quick", total)
	if errs := r.server.PublishBatch(ctx, batch); errs != nil {
		t.Fatal(errs[0])
	}
	runs := newRunCount(total)
	grown := make(chan struct{})
	order := chaosOrder{URL: r.url.String(), Name: r.name, Limit: 4}
	first := startWorker(t, ctx, order, func(n int) {
		if runs.ran(n); total-runs.missing() == enough {
			close(grown)
		}
	})
	wait(t, grown, fmt.Sprintf("%d calls", enough))
	_ = first.cmd.Process.Signal(syscall.SIGKILL)
	_ = first.wait()
	second := startWorker(t, ctx, order, runs.ran)
	wait(t, runs.all, "call of every task")
	stats := second.stop()
	r.queueIs(r.name, 0)
	r.queueIs(r.name+".suspects", 0)
	r.queueIs(r.name+".dead", 0)
	executions, twice := runs.count()
	t.Logf("%d tasks, %d executions, %d ran more than once, %d moved to the back", total, executions, twice, stats.Postponed)
	// Those that ran come back first, and only the first marks are believed. A task without a mark, which another slot has
	// just received, begins the count anew.
	if stats.Suspected != 0 || stats.Postponed < 1 || stats.Postponed > 50 {
		t.Errorf("%d tasks were suspected, %d lost once; want none, and about 20", stats.Suspected, stats.Postponed)
	}
}
