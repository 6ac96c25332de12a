package main

import (
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// allCurves returns the curves, without points.
func allCurves() []*curve {
	return []*curve{
		{
			name: "slots", title: "Slots of a worker", axis: "Limit", xs: []int{1, 3, 10, 30, 100, 300, 1000},
			rates:   []string{"tasks that do nothing", "tasks of 10 ms"},
			latency: "from Publish to function, at 500 tasks a second", measure: (*pass).slots,
		},
		{
			name: "publishers", title: "Goroutines that call Publish", axis: "goroutines", xs: []int{1, 3, 10, 30, 100, 300, 1000},
			rates: []string{"published"}, latency: "of Publish", measure: (*pass).publishers,
		},
		{
			name: "bodies", title: "Size of a task", axis: "bytes of one argument", xs: []int{10, 100, 1_000, 10_000, 100_000, 1_000_000},
			rates: []string{"published", "run"}, latency: "from Publish to function, one task at a time", measure: (*pass).bodies,
		},
		{
			name: "depth", title: "Tasks in the queue", axis: "tasks in the queue", xs: []int{1, 10, 100, 1_000, 10_000, 100_000, 1_000_000},
			rates: []string{"published", "run"}, latency: "of Publish", once: true, measure: depth(),
		},
		{
			name: "queues", title: "Queues, each with a worker, on one server", axis: "queues and workers", xs: []int{1, 3, 10, 30, 100},
			rates: []string{"published", "run"}, latency: "from Publish to function, at 500 tasks a second in total", measure: (*pass).queues,
		},
	}
}

func (g *pass) slots(limit int) (point, error) {
	quick, err := g.take(g.tasks, drainWith(classic, limit, 0))
	if err != nil {
		return point{}, err
	}
	broker := g.brokerMemory()
	slow, err := g.take(clamp(limit*100, 10, g.tasks), drainWith(classic, limit, 10*time.Millisecond))
	if err != nil {
		return point{}, err
	}
	at500, err := g.take(min(500, g.tasks), func(m *measurement) error { return m.steady(classic, 1, limit) })
	return point{[]float64{quick.rate, slow.rate}, at500.p50, at500.p99, quick.peak, broker}, err
}

func (g *pass) publishers(goroutines int) (point, error) {
	var all []time.Duration
	s, err := g.take(clamp(goroutines*500, goroutines, g.tasks), publishWith(func(m *measurement, server *dispatcher.Server) error {
		var mu sync.Mutex
		return oneByOne(goroutines, m.n, func() error {
			began := time.Now()
			err := server.PublishContext(m.ctx, newTask())
			took := time.Since(began)
			mu.Lock()
			all = append(all, took)
			mu.Unlock()
			return err
		})
	}))
	return point{[]float64{s.rate}, percentile(all, 0.5), percentile(all, 0.99), s.peak, g.brokerMemory()}, err
}

func (g *pass) bodies(size int) (point, error) {
	n := clamp(100_000_000/size, 10, g.tasks)
	long := strings.Repeat("x", size)
	var span time.Duration
	run, err := g.take(n, func(m *measurement) error {
		p, server, err := m.start(classic, 1)
		if err != nil {
			return err
		}
		began := time.Now()
		err = publishBatches(m.ctx, server, m.n, clamp(5_000_000/size, 1, batch), func() *dispatcher.Task {
			return dispatcher.NewTask(taskName, long, 42)
		})
		if err != nil {
			return err
		}
		span = time.Since(began)
		return m.drain(server, p, 10, 0)
	})
	if err != nil {
		return point{}, err
	}
	broker := g.brokerMemory()
	single, err := g.take(min(n, 200), func(m *measurement) error { return m.latencyOf(long) })
	return point{[]float64{float64(n) / span.Seconds(), run.rate}, single.p50, single.p99, run.peak, broker}, err
}

// depth fills one queue more and more. At each depth it publishes a few thousand tasks in batches and a few one by one,
// and runs as many.
func depth() func(g *pass, x int) (point, error) {
	var p *place
	have := 0
	return func(g *pass, x int) (point, error) {
		if p == nil {
			var err error
			if p, err = g.whole.place(classic, 1); err != nil {
				return point{}, err
			}
		}
		some := min(5000, g.tasks)
		const single = 200
		var took []time.Duration
		var published float64
		s, err := g.take(some+single, func(m *measurement) error {
			server, err := m.server(p, nil)
			if err != nil {
				return err
			}
			if err := publishBatches(m.ctx, server, x-have, batch, newTask); err != nil {
				return err
			}
			have = x
			m.settle()
			began := time.Now()
			if err := publishBatches(m.ctx, server, some, batch, newTask); err != nil {
				return err
			}
			published = float64(some) / time.Since(began).Seconds()
			for range single {
				began := time.Now()
				if err := server.PublishContext(m.ctx, newTask()); err != nil {
					return err
				}
				took = append(took, time.Since(began))
			}
			return m.drain(server, p, 10, 0)
		})
		return point{[]float64{published, s.rate}, percentile(took, 0.5), percentile(took, 0.99), s.peak, g.brokerMemory()}, err
	}
}

func (g *pass) queues(queues int) (point, error) {
	var published float64
	run, err := g.take(g.tasks, func(m *measurement) error {
		p, server, err := m.start(classic, queues)
		if err != nil {
			return err
		}
		next := 0
		began := time.Now()
		err = publishBatches(m.ctx, server, m.n, batch, func() *dispatcher.Task {
			task := newTask()
			task.RoutingKey = p.keys[next%queues]
			next++
			return task
		})
		published = float64(m.n) / time.Since(began).Seconds()
		return errors.Join(err, m.drain(server, p, 10, 0))
	})
	if err != nil {
		return point{}, err
	}
	broker := g.brokerMemory()
	at500, err := g.take(min(500, g.tasks), func(m *measurement) error { return m.steady(classic, queues, 10) })
	return point{[]float64{published, run.rate}, at500.p50, at500.p99, run.peak, broker}, err
}
