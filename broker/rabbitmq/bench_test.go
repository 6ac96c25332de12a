package rabbitmq_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// One goroutine publishes 50,000 persistent messages of 256 bytes in one call, and waits for all their confirmations.
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

// One goroutine receives 10,000 messages with a prefetch of 10, and acks each.
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

// BenchmarkDelay1kLateness measures how late 1,000 messages with random delays of 50 ms to 8 s arrive. The lateness is
// the time from NotBefore until a message is received.
func BenchmarkDelay1kLateness(b *testing.B) {
	s, q := benchQueue(b)
	var late []time.Duration
	for b.Loop() {
		msgs := benchMessages(q, 1000)
		for i := range msgs {
			msgs[i].NotBefore = time.Now().Add(50*time.Millisecond + rand.N(7950*time.Millisecond))
		}
		_, l := lateness(b, s, q, msgs)
		late = append(late, l...)
	}
	slices.Sort(late)
	for name, i := range map[string]int{"min": 0, "p50": len(late) / 2, "p99": len(late) * 99 / 100, "max": len(late) - 1} {
		b.ReportMetric(float64(late[i].Milliseconds()), name+"-late-ms")
	}
}

// BenchmarkDelay10kAtOnce measures how fast 10,000 messages that are due at the same time are stored, and how fast they
// then leave their last level.
func BenchmarkDelay10kAtOnce(b *testing.B) {
	s, q := benchQueue(b)
	for b.Loop() {
		msgs, at := benchMessages(q, 10_000), time.Now().Add(8*time.Second)
		for i := range msgs {
			msgs[i].NotBefore = at
		}
		stored, late := lateness(b, s, q, msgs)
		b.ReportMetric(10_000/stored.Seconds(), "stored/s")
		b.ReportMetric(10_000/slices.Max(late).Seconds(), "due/s")
	}
}

// lateness publishes and receives msgs. It returns the time that the publish took, and how long after NotBefore each
// message arrived.
func lateness(b *testing.B, s broker.Session, q string, msgs []broker.Message) (stored time.Duration, late []time.Duration) {
	at := make(map[string]time.Time)
	for _, m := range msgs {
		at[m.ID] = m.NotBefore
	}
	c, err := s.Consume(b.Context(), broker.ConsumeOptions{Queue: q, Prefetch: 1000})
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	publishAll(b, s, msgs)
	stored = time.Since(began)
	for range msgs {
		d := <-c.Deliveries()
		late = append(late, time.Since(at[d.ID]))
		if err := d.Ack(); err != nil {
			b.Fatal(err)
		}
	}
	if err := c.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	return stored, late
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
