package systemtest_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

func prefetch(limit, n int) func(*dispatcher.WorkerConfig) {
	return func(c *dispatcher.WorkerConfig) { c.Limit, c.Prefetch = limit, n }
}

// The broker hands out Prefetch tasks, of which Limit run. A worker that stops gives back the others.
func TestPrefetchIsApartFromLimit(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		var now, most atomic.Int32
		gate, entered := make(chan struct{}), make(chan struct{}, 50)
		set := tasks{"t": fn(func() {
			raise(&most, now.Add(1))
			defer now.Add(-1)
			entered <- struct{}{}
			<-gate
		})}
		w := v.newWorker(s, "w", set, prefetch(2, 20))
		for range 50 {
			v.publish(s, "t")
		}
		if err := w.Start(s); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			wait(v.t, entered, "call")
		}
		session := v.session()
		holds := func(ready, unsettled int) {
			v.t.Helper()
			eventually(v.t, "the queue hands out its tasks", func() bool {
				info, err := session.Inspect(v.t.Context(), v.name)
				return err == nil && info.Ready == ready && (info.Unsettled == unsettled || info.Unsettled == -1)
			})
		}
		holds(30, 20)
		closed := make(chan struct{})
		go func() { defer close(closed); w.Close() }()
		holds(48, 2) // those that run
		close(gate)
		wait(v.t, closed, "end of Close")
		holds(48, 0)
		if most.Load() != 2 {
			v.t.Errorf("%d at once, want 2", most.Load())
		}
		v.worker(s, "next", set, prefetch(10, 10))
		eventually(v.t, "the next worker runs all", func() bool { return s.Stats().Succeeded == 50 })
		if st := s.Stats(); st.Postponed != 0 || st.Suspected != 0 || st.Lost != 0 || st.DeadLettered != 0 {
			v.t.Errorf("tasks that were given back are charged: %+v", st)
		}
	})
}

// A quorum queue of RabbitMQ forgets acks that come one by one before their channel is closed, of more than 32
// deliveries. The tasks that a stopping worker gives back must not be there twice nevertheless.
func TestTasksGivenBackByAStoppingWorkerAreThereOnce(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string]string{"classic": "", "quorum": "quorum"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := rabbitVenue(t)
			s := v.server(func(c *dispatcher.ServerConfig) { c.QueueType = kind })
			const n = 600
			var mu sync.Mutex
			ran := make(map[int]int, n)
			gate, entered := make(chan struct{}), make(chan struct{}, n)
			set := tasks{"t": fn(func(i int) {
				mu.Lock()
				ran[i]++
				mu.Unlock()
				select {
				case entered <- struct{}{}:
				default: // more calls than tasks
				}
				<-gate
			})}
			w := v.newWorker(s, "w", set, prefetch(2, 500))
			batch := numberedTasks("t", n)
			if errs := s.PublishBatch(t.Context(), batch); errs != nil {
				t.Fatal(errs)
			}
			if err := w.Start(s); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				wait(t, entered, "call")
			}
			session := v.session()
			eventually(t, "500 tasks are fetched", func() bool {
				info, err := session.Inspect(t.Context(), v.name)
				return err == nil && info.Ready == n-500
			})
			closed := make(chan struct{})
			go func() { defer close(closed); w.Close() }()
			eventually(t, "the others are given back", func() bool {
				info, err := session.Inspect(t.Context(), v.name)
				return err == nil && info.Ready == n-2
			})
			close(gate)
			wait(t, closed, "end of Close")
			v.worker(s, "next", set, prefetch(10, 30))
			eventually(t, "the next worker runs all", func() bool { return s.Stats().Succeeded >= n })
			v.empty(v.name)
			v.empty(v.name + ".suspects")
			mu.Lock()
			defer mu.Unlock()
			twice := 0
			for _, times := range ran {
				if times > 1 {
					twice++
				}
			}
			if len(ran) != n || twice > 0 {
				t.Errorf("%d of %d tasks ran, %d of them twice", len(ran), n, twice)
			}
			if st := s.Stats(); st.Postponed != 0 || st.Suspected != 0 || st.Lost != 0 {
				t.Errorf("tasks that were given back are charged: %+v", st)
			}
		})
	}
}

// Deliveries that are held for another call of their task are given back at the same moment.
func TestHeldTasksGivenBackByAStoppingWorkerAreThereOnce(t *testing.T) {
	t.Parallel()
	v := rabbitVenue(t)
	s := v.server(func(c *dispatcher.ServerConfig) { c.QueueType = "quorum" })
	const n = 300
	var mu sync.Mutex
	ran := make(map[int]int, n)
	gate, entered := make(chan struct{}), make(chan struct{}, 1)
	set := tasks{"t": fn(func(i int) {
		mu.Lock()
		ran[i]++
		mu.Unlock()
		select {
		case entered <- struct{}{}:
		default:
		}
		<-gate
	})}
	w := v.newWorker(s, "w", set, prefetch(2, 500))
	batch := make([]*dispatcher.Task, n)
	for i := range batch {
		batch[i] = dispatcher.NewTask("t", i)
		batch[i].UUID = "order 7"
	}
	if errs := s.PublishBatch(t.Context(), batch); errs != nil {
		t.Fatal(errs)
	}
	if err := w.Start(s); err != nil {
		t.Fatal(err)
	}
	wait(t, entered, "call")
	eventually(t, "249 are held", func() bool { return s.Health(t.Context()).Workers[0].Held == 249 })
	closed := make(chan struct{})
	go func() { defer close(closed); w.Close() }()
	session := v.session()
	eventually(t, "they are given back", func() bool {
		info, err := session.Inspect(t.Context(), v.name)
		return err == nil && info.Ready >= 249
	})
	close(gate)
	wait(t, closed, "end of Close")
	v.worker(s, "next", set, prefetch(10, 30))
	all := func() bool { mu.Lock(); defer mu.Unlock(); return len(ran) == n }
	eventuallyWithin(t, 3*patience, "all have run", all)
	v.empty(v.name)
	v.empty(v.name + ".suspects")
	mu.Lock()
	defer mu.Unlock()
	for i, times := range ran {
		if times > 1 {
			t.Errorf("task %d ran %d times", i, times)
		}
	}
	if st := s.Stats(); st.Suspected != 0 || st.Lost != 0 {
		t.Errorf("tasks that were given back are charged: %+v", st)
	}
}

// A worker that has prefetched many short tasks loses its link fifty times. Nothing is lost or becomes a dead letter, and
// the tasks that had not begun are not charged.
func TestLostLinksOfALargePrefetchHarmNoTask(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		const n, cuts, large = 100_000, 50, 400
		runs := newRunCount(n)
		w := v.newWorker(s, "w", tasks{"t": fn(func(ctx context.Context, i int) { pause(ctx, time.Millisecond); runs.ran(i) })}, limit(20))
		batch := numberedTasks("t", n)
		for _, err := range s.PublishBatch(v.t.Context(), batch) {
			v.t.Fatal(err)
		}
		if err := w.Start(s); err != nil {
			v.t.Fatal(err)
		}
		for range cuts {
			eventually(v.t, "a large prefetch", func() bool { return s.Health(v.t.Context()).Workers[0].Prefetch >= large })
			v.kill()
		}
		wait(v.t, runs.all, "call of every task")
		v.empty(v.name)
		v.empty(v.name + ".suspects")
		v.empty(v.name + ".dead")
		executions, twice := runs.count()
		stats := s.Stats()
		v.t.Logf("%d tasks ran %d times, %d of them more than once; %d times lost, %d charged, %d suspected",
			n, executions, twice, stats.Lost, stats.Postponed, stats.Suspected)
	})
}
