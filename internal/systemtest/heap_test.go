package systemtest_test

import (
	"errors"
	"flag"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// `make chaos` runs these tests in full size: 10,000,000 tasks, 1,000 reconnects to RabbitMQ, and 10,000,000 tasks
// through one PublishAll.
var (
	heapTasks      = flag.Int("heap.tasks", 100_000, "tasks on the embedded broker beside one that never ends, and a fiftieth of them on RabbitMQ")
	heapPublished  = flag.Int("heap.published", 50_000, "tasks through one PublishAll on the embedded broker, and a tenth of them on RabbitMQ")
	heapReconnects = flag.Int("heap.reconnects", 8, "reconnects to RabbitMQ beside a task that never ends, about one a second")
)

// heapGrowth is how much the heap may grow, however much was done: 21 bytes a task for 100,000 tasks.
const heapGrowth = 2 << 20

// A settled task leaves nothing on the heap, even while an older task is unsettled. Not parallel, because all tests
// share the heap.
func TestTheHeapDoesNotGrowWithTasksBesideOneThatNeverEnds(t *testing.T) {
	t.Run("memory", func(t *testing.T) { tasksBesideOne(memoryVenue(t), *heapTasks) })
	if many := *heapTasks / 50; many >= 100_000 { // fewer do not show a leak: make chaos sets -heap.tasks 10000000
		t.Run("rabbitmq", func(t *testing.T) { tasksBesideOne(rabbitVenue(t), many) })
	}
}

func tasksBesideOne(v *venue, many int) {
	const size = 500
	done := make(chan struct{}, size)
	s, end := besideOne(v, 20, tasks{"quick": fn(func(int) { done <- struct{}{} })})
	defer end()
	run := func(n int) {
		batch := make([]*dispatcher.Task, size)
		for from := 0; from < n; from += size {
			for i := range batch {
				batch[i] = dispatcher.NewTask("quick", from+i)
			}
			if errs := s.PublishBatch(v.t.Context(), batch); errs != nil {
				v.t.Fatal(errors.Join(errs...))
			}
			for range batch {
				wait(v.t, done, "task")
			}
		}
	}
	run(20 * size)
	before, began := settledHeap(), time.Now()
	run(many)
	v.heapIs(before, "%d tasks in %.1f s", many, time.Since(began).Seconds())
}

// A worker that has had a thousand consumers uses no more memory than one that has had twenty, although a task of its
// first consumer still runs. Not parallel, because all tests share the heap.
func TestTheHeapDoesNotGrowWithReconnectsBesideATaskThatNeverEnds(t *testing.T) {
	const many, warm = 1000, 20
	t.Run("consumers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			v := memoryVenue(t)
			s, end := besideOne(v, 50, nil)
			defer end()
			session := v.session()
			lose := func(n int) {
				for range n {
					if err := session.Delete(t.Context(), v.name); err != nil {
						t.Fatal(err)
					}
					<-time.After(time.Minute) // in the bubble
				}
			}
			lose(warm)
			before := settledHeap()
			lose(many)
			v.heapIs(before, "%d consumers", many)
			if !s.Health(t.Context()).OK() {
				t.Errorf("health %+v", s.Health(t.Context()))
			}
		})
	})
	t.Run("rabbitmq", func(t *testing.T) {
		v := rabbitVenue(t)
		s, end := besideOne(v, 500, nil)
		defer end()
		reconnects := func(n int) {
			for range n {
				since := s.Health(t.Context()).Since
				v.kill()
				eventually(t, "the server is connected again", func() bool {
					h := s.Health(t.Context())
					return h.Since.After(since) && h.OK()
				})
			}
		}
		reconnects(3)
		before, began := settledHeap(), time.Now()
		reconnects(*heapReconnects)
		v.heapIs(before, "%d reconnects in %.1f s", *heapReconnects, time.Since(began).Seconds())
	})
}

// publishAllHeap is how much the heap may grow during a PublishAll of any length, garbage included.
const publishAllHeap = 32 << 20

// PublishAll needs constant memory. Not parallel, because all tests share the heap.
func TestTheHeapStaysSmallDuringPublishAll(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		v := memoryVenue(t)
		s := v.server(func(c *dispatcher.ServerConfig) {
			c.InitQueues = []dispatcher.Queue{{Name: v.name, BindingKeys: []string{v.name}}}
		})
		c, err := v.session().Consume(t.Context(), broker.ConsumeOptions{Queue: v.name, Prefetch: 2000})
		if err != nil {
			t.Fatal(err)
		}
		v.publishAll(s, *heapPublished, func() {
			if err := wait(t, c.Deliveries(), "task").Ack(); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("rabbitmq", func(t *testing.T) {
		v := rabbitVenue(t)
		s := v.server(func(c *dispatcher.ServerConfig) {
			c.InitQueues = []dispatcher.Queue{{Name: v.name, BindingKeys: []string{v.name}}}
		})
		v.publishAll(s, *heapPublished/10, func() {})
	})
}

// publishAll publishes n tasks and calls after for each. It checks the heap meanwhile.
func (v *venue) publishAll(s *dispatcher.Server, n int, after func()) {
	v.t.Helper()
	tasks := func(yield func(*dispatcher.Task) bool) {
		for i := range n {
			if !yield(dispatcher.NewTask("n", "one hundred and sixty bytes in all", i)) {
				return
			}
		}
	}
	before, began, i, most := settledHeap(), time.Now(), 0, int64(0)
	for _, err := range s.PublishAll(v.t.Context(), tasks) {
		if err != nil {
			v.t.Fatal(err)
		}
		after()
		if i++; i%1000 == 0 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, int64(m.HeapAlloc)-before)
		}
	}
	rate := float64(n) / time.Since(began).Seconds()
	v.t.Logf("%d tasks, %.0f a second: the heap grew by at most %d KiB, from %d KiB", i, rate, most>>10, before>>10)
	if i != n || most > publishAllHeap {
		v.t.Errorf("%d of %d tasks, and the heap grew by %d KiB, want at most %d", i, n, most>>10, publishAllHeap>>10)
	}
}

// besideOne starts a worker with the given number of slots. One slot stays busy until end is called.
func besideOne(v *venue, slots int, set tasks) (s *dispatcher.Server, end func()) {
	v.t.Helper()
	s = v.server(func(c *dispatcher.ServerConfig) { c.Logger = quiet })
	began, over := make(chan struct{}, 1), make(chan struct{})
	all := tasks{"never": fn(func() {
		select {
		case began <- struct{}{}:
		default:
		}
		<-over
	})}
	for name, task := range set {
		all[name] = task
	}
	v.worker(s, "w", all, limit(slots))
	v.publish(s, "never")
	wait(v.t, began, "call of the task that never ends")
	return s, func() { close(over) }
}

// settledHeap returns the heap in use after garbage collection. The second collection empties the pools.
func settledHeap() int64 {
	runtime.GC()
	return heap()
}

// heapIs checks that the heap has not grown by more than heapGrowth.
func (v *venue) heapIs(before int64, what string, args ...any) {
	v.t.Helper()
	growth := settledHeap() - before
	what = fmt.Sprintf(what, args...)
	v.t.Logf("%s: the heap grew by %d KiB, to %d KiB", what, growth>>10, (before+growth)>>10)
	if growth > heapGrowth {
		v.t.Errorf("%s: the heap grew by %d KiB, want at most %d", what, growth>>10, heapGrowth>>10)
	}
}

// heap returns how much of the heap is in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
