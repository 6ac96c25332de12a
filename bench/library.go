package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

const (
	bodyBytes = 160
	text      = "one hundred and sixty bytes in all"
	limit     = 10   // of the worker, and the prefetch of the consumer by hand
	manyAhead = 1000 // the prefetch that is apart from the limit
	batch     = 5000 // of PublishBatch
)

func newServer(p *place) (*dispatcher.Server, error) {
	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
		AMQPConnectionString: p.url, Exchange: p.name, DefaultRoutingKey: p.name,
		Logger: dispatcher.SlogLogger(slog.New(slog.NewTextHandler(io.Discard, nil))),
	})
	return server, err
}

// publishWithLibrary makes, encodes and publishes n tasks from one goroutine.
func publishWithLibrary(p *place, n int) (rate float64, err error) {
	server, err := newServer(p)
	if err != nil {
		return 0, err
	}
	defer server.Close()
	began := time.Now()
	for left := n; left > 0; {
		tasks := make([]*dispatcher.Task, min(left, batch))
		for i := range tasks {
			tasks[i] = newTask()
		}
		if err := errors.Join(server.PublishBatch(context.Background(), tasks)...); err != nil {
			return 0, err
		}
		left -= len(tasks)
	}
	rate = perSecond(n, began)
	return rate, errors.Join(p.holds(n), p.purge())
}

// publishAllWithLibrary does the same with one call of PublishAll.
func publishAllWithLibrary(p *place, n int) (rate float64, err error) {
	server, err := newServer(p)
	if err != nil {
		return 0, err
	}
	defer server.Close()
	began := time.Now()
	tasks := func(yield func(*dispatcher.Task) bool) {
		for range n {
			if !yield(newTask()) {
				return
			}
		}
	}
	for _, err := range server.PublishAll(context.Background(), tasks) {
		if err != nil {
			return 0, err
		}
	}
	rate = perSecond(n, began)
	return rate, errors.Join(p.holds(n), p.purge())
}

// drainWithLibrary decodes each task, calls a function with its arguments and acks it.
func drainWithLibrary(prefetch int) func(p *place, n int) (rate float64, err error) {
	return func(p *place, n int) (rate float64, err error) { return drain(p, n, prefetch) }
}

func drain(p *place, n, prefetch int) (rate float64, err error) {
	if _, err := fill(p, n); err != nil {
		return 0, err
	}
	server, err := newServer(p)
	if err != nil {
		return 0, err
	}
	defer server.Close()
	var began atomic.Pointer[time.Time]
	var calls atomic.Int64
	all := make(chan struct{})
	cfg := &dispatcher.WorkerConfig{Name: "bench", Queue: p.name, Limit: limit, Prefetch: prefetch}
	w, err := server.NewWorker(cfg, map[string]dispatcher.TaskConfig{
		"bench": {Function: func(string, int) {
			switch calls.Add(1) {
			case 1:
				now := time.Now()
				began.Store(&now)
			case int64(n):
				rate = perSecond(n-1, *began.Load())
				close(all)
			}
		}},
	})
	if err != nil {
		return 0, err
	}
	if err := w.Start(server); err != nil {
		return 0, err
	}
	select {
	case <-all:
	case <-time.After(5 * time.Minute):
		return 0, fmt.Errorf("only %d of %d tasks ran", calls.Load(), n)
	}
	server.Close()
	return rate, p.holds(0)
}
