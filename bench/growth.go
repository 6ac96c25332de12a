package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// curve is how the library behaves while one number grows.
type curve struct {
	name    string // also of its plot
	title   string
	axis    string // what grows
	xs      []int
	rates   []string // what the rates are of
	latency string   // what the latencies are of
	once    bool     // one pass must do, since it takes long
	measure func(g *pass, x int) (point, error)
	points  [][]point // of each x, one for each pass
}

// point is one measurement of a curve.
type point struct {
	rates    []float64 // tasks a second
	p50, p99 float64   // milliseconds
	client   float64   // the most memory of this process, in MiB
	broker   float64   // memory of RabbitMQ afterwards, in MiB
}

// pass is one way along a curve.
type pass struct {
	*bench
	ctx   context.Context
	tasks int
	whole *measurement // has what outlives a point
}

// maxPasses keeps growth within half an hour.
const maxPasses = 3

// measure takes the points in several passes, every other one backwards.
func (b *bench) measure(ctx context.Context, c *curve, rounds, tasks int) error {
	passes := min(rounds, maxPasses)
	if c.once {
		passes = 1
	}
	c.points = make([][]point, len(c.xs))
	for n := range passes {
		order := make([]int, len(c.xs))
		for i := range order {
			order[i] = i
			if n%2 == 1 {
				order[i] = len(order) - 1 - i
			}
		}
		g := &pass{bench: b, ctx: ctx, tasks: tasks, whole: &measurement{ctx: ctx, services: b.services}}
		err := func() (err error) {
			defer func() { err = errors.Join(err, g.whole.clean()) }()
			for _, i := range order {
				p, err := c.measure(g, c.xs[i])
				if err != nil {
					return fmt.Errorf("at %d: %w", c.xs[i], err)
				}
				c.points[i] = append(c.points[i], p)
				fmt.Fprintf(b.progress, "%s %d: %.0f tasks/s, p50 %.2f ms, p99 %.2f ms\n", c.name, c.xs[i], p.rates, p.p50, p.p99)
			}
			return nil
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

// take measures one part of a point.
func (g *pass) take(n int, f func(*measurement) error) (sample, error) {
	s, _, err := g.bench.take(g.ctx, g.rabbitProcess, n, f)
	if err == nil {
		g.foreign = append(g.foreign, s.foreign)
	}
	return s, err
}

func (g *pass) brokerMemory() float64 { return memoryOf(g.rabbitProcess, "VmRSS") }

// table returns the medians as Markdown.
func (c *curve) table() string {
	header := []string{c.axis}
	for _, name := range c.rates {
		header = append(header, name+"/s")
	}
	t := [][]string{append(header, "p50", "p99", "client MiB", "RabbitMQ MiB")}
	for i, x := range c.xs {
		line := []string{thousands(float64(x))}
		for r := range c.rates {
			line = append(line, thousands(c.median(i, func(p point) float64 { return p.rates[r] })))
		}
		t = append(t, append(line,
			milliseconds(c.median(i, func(p point) float64 { return p.p50 })), milliseconds(c.median(i, func(p point) float64 { return p.p99 })),
			fixed(c.median(i, func(p point) float64 { return p.client }), 0), fixed(c.median(i, func(p point) float64 { return p.broker }), 0)))
	}
	return fmt.Sprintf("%s\n\n%s", "Latency: "+c.latency+".", markdown(t))
}

// median returns the median of one figure of the points at the x with this index.
func (c *curve) median(i int, figure func(point) float64) float64 {
	var values []float64
	for _, p := range c.points[i] {
		if v := figure(p); !math.IsNaN(v) {
			values = append(values, v)
		}
	}
	return median(values)
}

// steady publishes m.n tasks, 500 a second, and takes the time of each from the call of Publish to that of the function.
func (m *measurement) steady(kind string, queues, limit int) error {
	const publishers, perSecond = 10, 500
	p, server, err := m.start(kind, queues)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	c := newCounter(m.n)
	workers, err := newWorkers(server, p, limit, func(_ string, called int64) {
		took := since(called)
		mu.Lock()
		m.latencies = append(m.latencies, took)
		mu.Unlock()
		c.call()
	})
	if err != nil {
		return err
	}
	if err := startAll(server, workers); err != nil {
		return err
	}
	m.settle()
	var turn sync.Mutex
	next, due := 0, time.Now()
	m.begin()
	err = oneByOne(publishers, m.n, func() error {
		turn.Lock()
		due = due.Add(time.Second / perSecond)
		at, key := due, p.keys[next%queues]
		next++
		turn.Unlock()
		time.Sleep(time.Until(at))
		task := dispatcher.NewTask(taskName, text, now())
		task.RoutingKey = key
		return server.PublishContext(m.ctx, task)
	})
	if err == nil {
		err = c.wait(m.ctx)
	}
	m.end()
	server.Close()
	return err
}

func clamp(v, least, most int) int { return max(least, min(v, most)) }
