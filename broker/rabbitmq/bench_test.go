package rabbitmq_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// One goroutine publishes 50,000 persistent messages of 256 bytes in one call, and waits for all their confirms.
func BenchmarkPublish50k(b *testing.B) {
	s, q := benchQueue(b)
	msgs := benchMessages(q, 50_000)
	b.ReportAllocs()
	for b.Loop() {
		publishAll(b, s, msgs)
		b.StopTimer()
		if _, err := s.Purge(b.Context(), q); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(50_000*float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// One goroutine receives 10,000 messages and acks each, 10 in its hands at most.
func BenchmarkDrain10k(b *testing.B) {
	s, q := benchQueue(b)
	msgs := benchMessages(q, 10_000)
	for b.Loop() {
		b.StopTimer()
		publishAll(b, s, msgs)
		c, err := s.Consume(b.Context(), broker.ConsumeOptions{Queue: q, Prefetch: 10})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		for range msgs {
			if err := (<-c.Deliveries()).Ack(); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		if err := c.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(10_000*float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

func benchQueue(b *testing.B) (broker.Session, string) {
	s := open(b, newBroker(b, rabbitmq.Config{URLs: []string{amqpURL(b).String()}}))
	q := uniqueName()
	if err := s.Declare(b.Context(), broker.Topology{Queues: []broker.QueueSpec{{Name: q}}}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Delete(context.Background(), q) })
	return s, q
}

func benchMessages(q string, n int) []broker.Message {
	msgs := make([]broker.Message, n)
	for i := range msgs {
		msgs[i] = broker.Message{RoutingKey: q, ID: fmt.Sprint(i), Type: "bench", Body: make([]byte, 256)}
	}
	return msgs
}

func publishAll(b *testing.B, s broker.Session, msgs []broker.Message) {
	var left atomic.Int64
	left.Store(int64(len(msgs)))
	all := make(chan struct{})
	s.Publish(b.Context(), msgs, func(_ int, err error) {
		if err != nil {
			b.Error(err)
		}
		if left.Add(-1) == 0 {
			close(all)
		}
	})
	<-all
}
