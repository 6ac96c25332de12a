package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"

	"github.com/hibiken/asynq"
)

// onAsynq calls f with a client and the name of a queue that only this measurement uses.
func onAsynq(f func(m *measurement, client *asynq.Client, queue string) error) func(*measurement) error {
	return func(m *measurement) error {
		if m.redis == nil {
			return missing("Redis")
		}
		queue := "bench." + rand.Text()
		opt := asynq.RedisClientOpt{Addr: m.redisAddress}
		client := asynq.NewClient(opt)
		defer client.Close()
		m.cleanup(func() error {
			inspector := asynq.NewInspector(opt)
			err := inspector.DeleteQueue(queue, true)
			if errors.Is(err, asynq.ErrQueueNotFound) {
				err = nil
			}
			return errors.Join(err, inspector.Close())
		})
		return f(m, client, queue)
	}
}

func enqueue(m *measurement, client *asynq.Client, queue string) error {
	payload, err := json.Marshal(arguments{text, 42})
	if err != nil {
		return err
	}
	_, err = client.EnqueueContext(m.ctx, asynq.NewTask(taskName, payload), asynq.Queue(queue))
	return err
}

func publishWithAsynq(goroutines int) func(*measurement) error {
	return onAsynq(func(m *measurement, client *asynq.Client, queue string) error {
		m.begin()
		err := oneByOne(goroutines, m.n, func() error { return enqueue(m, client, queue) })
		m.end()
		return err
	})
}

// asynqServer has 10 slots and otherwise the default settings.
func asynqServer(m *measurement, queue string, handle func()) (*asynq.Server, error) {
	server := asynq.NewServer(asynq.RedisClientOpt{Addr: m.redisAddress}, asynq.Config{
		Concurrency: 10, Queues: map[string]int{queue: 1}, Logger: silent{}, LogLevel: asynq.FatalLevel,
	})
	return server, server.Start(asynq.HandlerFunc(func(_ context.Context, task *asynq.Task) error {
		var a arguments
		if err := json.Unmarshal(task.Payload(), &a); err != nil {
			return err
		}
		handle()
		return nil
	}))
}

var drainWithAsynq = onAsynq(func(m *measurement, client *asynq.Client, queue string) error {
	if err := oneByOne(64, m.n, func() error { return enqueue(m, client, queue) }); err != nil {
		return err
	}
	m.settle()
	c := newCounter(m.n)
	m.begin()
	server, err := asynqServer(m, queue, c.call)
	if err != nil {
		return err
	}
	err = c.wait(m.ctx)
	m.end() // before Shutdown, which waits for timers
	server.Shutdown()
	m.span = c.span
	return err
})

var latencyWithAsynq = onAsynq(func(m *measurement, client *asynq.Client, queue string) error {
	handled := make(chan int64, 1)
	server, err := asynqServer(m, queue, func() { handled <- now() })
	if err != nil {
		return err
	}
	defer server.Shutdown()
	return m.oneAtATime(handled, func(int) error { return enqueue(m, client, queue) })
})

// silent is a logger that drops everything.
type silent struct{}

func (silent) Debug(...any) {}
func (silent) Info(...any)  {}
func (silent) Warn(...any)  {}
func (silent) Error(...any) {}
func (silent) Fatal(...any) {}
