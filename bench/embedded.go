package main

import (
	"encoding/json"
	"sync"

	"github.com/seed-416683c9/dispatcher/broker/memory"
)

const embeddedSlots = 10

// embedded is a place in the embedded broker, with one queue.
var embedded = &place{name: "bench", keys: []string{"bench"}}

// embeddedWith publishes to the embedded broker while a worker runs the tasks. With full, the worker starts when all
// tasks are in the queue, and only running them is measured.
func embeddedWith(full bool) func(*measurement) error {
	return func(m *measurement) error {
		server, err := m.server(embedded, memory.New())
		if err != nil {
			return err
		}
		c := newCounter(m.n)
		workers, err := newWorkers(server, embedded, embeddedSlots, func(string, int) { c.call() })
		if err != nil {
			return err
		}
		if full {
			if err := inBatches(m, server); err != nil {
				return err
			}
			m.settle()
		}
		m.begin()
		if err := startAll(server, workers); err != nil {
			return err
		}
		if !full {
			if err := inBatches(m, server); err != nil {
				return err
			}
		}
		if err := c.wait(m.ctx); err != nil {
			return err
		}
		m.end()
		return nil
	}
}

// channelByHand sends encoded tasks through a Go channel to goroutines that decode them and call a function. With full,
// all tasks are in the channel before the goroutines start.
func channelByHand(full bool) func(*measurement) error {
	return func(m *measurement) error {
		room := batch
		if full {
			room = m.n
		}
		queue := make(chan []byte, room)
		c := newCounter(m.n)
		var all sync.WaitGroup
		start := func() {
			for range embeddedSlots {
				all.Go(func() {
					for data := range queue {
						if decode(data) == nil {
							c.call()
						}
					}
				})
			}
		}
		if full {
			if err := sendAll(m, queue); err != nil {
				return err
			}
			m.settle()
		}
		m.begin()
		start()
		if !full {
			if err := sendAll(m, queue); err != nil {
				return err
			}
		}
		if err := c.wait(m.ctx); err != nil {
			return err
		}
		all.Wait()
		m.end()
		return nil
	}
}

func sendAll(m *measurement, queue chan<- []byte) error {
	defer close(queue)
	for range m.n {
		data, err := json.Marshal(newTask())
		if err != nil {
			return err
		}
		queue <- data
	}
	return nil
}
