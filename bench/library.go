package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

const batch = 5000 // of PublishBatch

// quiet is a logger for the library. A log on the terminal would be measured too.
var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// server connects the library to the place, or to the embedded broker if there is one, and closes it after the
// measurement.
func (m *measurement) server(p *place, embedded broker.Broker) (*dispatcher.Server, error) {
	cfg := &dispatcher.ServerConfig{Exchange: p.name, DefaultRoutingKey: p.key(), Logger: dispatcher.SlogLogger(quiet)}
	if embedded != nil {
		cfg.Broker = embedded
	} else {
		cfg.AMQPConnectionString, cfg.QueueType = m.url, p.kind
	}
	server, _, err := dispatcher.NewServerContext(m.ctx, cfg)
	if err == nil {
		m.cleanup(func() error { server.Close(); return nil })
	}
	return server, err
}

// start makes a place and connects a server to it.
func (m *measurement) start(kind string, queues int) (*place, *dispatcher.Server, error) {
	p, err := m.place(kind, queues)
	if err != nil {
		return nil, nil, err
	}
	server, err := m.server(p, nil)
	return p, server, err
}

// publishWith measures how the library publishes n tasks to a classic queue.
func publishWith(publish func(m *measurement, server *dispatcher.Server) error) func(*measurement) error {
	return func(m *measurement) error {
		p, server, err := m.start(classic, 1)
		if err != nil {
			return err
		}
		m.begin()
		err = publish(m, server)
		m.end()
		return errors.Join(err, p.holds(m.n))
	}
}

// inBatches makes, encodes and publishes the tasks in one goroutine.
func inBatches(m *measurement, server *dispatcher.Server) error {
	return publishBatches(m.ctx, server, m.n, batch, newTask)
}

func publishBatches(ctx context.Context, server *dispatcher.Server, n, size int, next func() *dispatcher.Task) error {
	for left := n; left > 0; {
		tasks := make([]*dispatcher.Task, min(left, size))
		for i := range tasks {
			tasks[i] = next()
		}
		for _, err := range server.PublishBatch(ctx, tasks) {
			if err != nil {
				return err // thousands of others may say the same
			}
		}
		left -= len(tasks)
	}
	return nil
}

// asSequence does the same with one call of PublishAll.
func asSequence(m *measurement, server *dispatcher.Server) error {
	tasks := func(yield func(*dispatcher.Task) bool) {
		for range m.n {
			if !yield(newTask()) {
				return
			}
		}
	}
	for _, err := range server.PublishAll(m.ctx, tasks) {
		if err != nil {
			return err
		}
	}
	return nil
}

// withoutWaiting does the same with a call of PublishAsync for each.
func withoutWaiting(m *measurement, server *dispatcher.Server) error {
	outcomes := make(chan error, m.n) // done must not block
	for range m.n {
		server.PublishAsync(m.ctx, newTask(), func(err error) { outcomes <- err })
	}
	for range m.n {
		if err := <-outcomes; err != nil {
			return err
		}
	}
	return nil
}

// oneByOne calls publish n times in the given number of goroutines.
func oneByOne(goroutines, n int, publish func() error) error {
	var all sync.WaitGroup
	errs := make([]error, goroutines)
	for i := range goroutines {
		part := (i+1)*n/goroutines - i*n/goroutines
		all.Go(func() {
			for range part {
				if errs[i] = publish(); errs[i] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// fromGoroutines calls Publish for each task.
func fromGoroutines(goroutines int) func(m *measurement, server *dispatcher.Server) error {
	return func(m *measurement, server *dispatcher.Server) error {
		return oneByOne(goroutines, m.n, func() error { return server.PublishContext(m.ctx, newTask()) })
	}
}

// drainWith drains a full queue with a worker: it decodes each task, calls a function that takes so long with its
// arguments, and acks it.
func drainWith(kind string, limit int, took time.Duration) func(*measurement) error {
	return func(m *measurement) error {
		p, err := m.place(kind, 1)
		if err != nil {
			return err
		}
		if err := pipelined.fill(m, p); err != nil {
			return err
		}
		server, err := m.server(p, nil)
		if err != nil {
			return err
		}
		if err := m.drain(server, p, limit, took); err != nil {
			return err
		}
		return p.holds(0)
	}
}

// drain runs the tasks that wait in the queues, with one worker for each queue, and closes the server. A task takes as
// long as duration says. Several workers begin together, when all have started.
func (m *measurement) drain(server *dispatcher.Server, p *place, limit int, duration time.Duration) error {
	c := newCounter(m.n)
	gate := make(chan struct{})
	if len(p.keys) == 1 {
		close(gate)
	}
	f := func(string, int) {
		<-gate
		c.call()
		if duration > 0 {
			time.Sleep(duration)
		}
	}
	workers, err := newWorkers(server, p, limit, f)
	if err != nil {
		return err
	}
	m.settle()
	m.begin()
	if err := startAll(server, workers); err != nil {
		return err
	}
	if len(p.keys) > 1 {
		close(gate)
	}
	if err := c.wait(m.ctx); err != nil {
		return err
	}
	server.Close()
	m.end()
	m.span = c.span
	return nil
}

// newWorkers makes a worker for each queue, with the default settings apart from the limit.
func newWorkers(server *dispatcher.Server, p *place, limit int, function any) ([]*dispatcher.Worker, error) {
	var workers []*dispatcher.Worker
	for _, key := range p.keys {
		w, err := server.NewWorker(&dispatcher.WorkerConfig{Name: key, Queue: key, BindingKeys: []string{key}, Limit: limit},
			map[string]dispatcher.TaskConfig{taskName: {Function: function}})
		if err != nil {
			return nil, err
		}
		workers = append(workers, w)
	}
	return workers, nil
}

func startAll(server *dispatcher.Server, workers []*dispatcher.Worker) error {
	for _, w := range workers {
		if err := w.Start(server); err != nil {
			return err
		}
	}
	return nil
}

// latencyWith publishes one task at a time to a worker with 10 slots.
func latencyWith(m *measurement) error { return m.latencyOf(text) }

func (m *measurement) latencyOf(argument string) error {
	p, server, err := m.start(classic, 1)
	if err != nil {
		return err
	}
	handled := make(chan int64, 1)
	workers, err := newWorkers(server, p, 10, func(string, int) { handled <- now() })
	if err != nil {
		return err
	}
	if err := startAll(server, workers); err != nil {
		return err
	}
	return m.oneAtATime(handled, func(int) error {
		return server.PublishContext(m.ctx, dispatcher.NewTask(taskName, argument, 42))
	})
}

// counter takes the time from the first call to the last.
type counter struct {
	want  int64
	calls atomic.Int64
	first atomic.Int64
	span  time.Duration // once wait has returned
	all   chan struct{}
}

func newCounter(want int) *counter { return &counter{want: int64(want), all: make(chan struct{})} }

func (c *counter) call() {
	switch n := c.calls.Add(1); n {
	case 1:
		c.first.Store(now())
	case c.want:
		c.span = since(c.first.Load())
		close(c.all)
	}
}

func (c *counter) wait(ctx context.Context) error {
	select {
	case <-c.all:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("only %d of %d tasks ran: %w", c.calls.Load(), c.want, ctx.Err())
	}
}
