package memory_test

import (
	"context"
	"fmt"
	"testing"

	"go.uber.org/goleak"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns a new session of b that ends with the test.
func open(t testing.TB, b *memory.Broker) broker.Session {
	t.Helper()
	s, err := b.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	return s
}

// declare makes durable queues.
func declare(t testing.TB, s broker.Session, queues ...string) {
	t.Helper()
	var topology broker.Topology
	for _, q := range queues {
		topology.Queues = append(topology.Queues, broker.QueueSpec{Name: q})
	}
	if err := s.Declare(context.Background(), topology); err != nil {
		t.Fatal(err)
	}
}

// publish sends m and returns its outcome.
func publish(s broker.Session, m broker.Message) (outcome error) {
	s.Publish(context.Background(), []broker.Message{m}, func(_ int, err error) { outcome = err })
	return outcome
}

// fill publishes messages with the IDs first to last to a queue.
func fill(t testing.TB, s broker.Session, queue string, first, last int) {
	t.Helper()
	for i := first; i <= last; i++ {
		if err := publish(s, broker.Message{RoutingKey: queue, ID: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
}

func consume(t testing.TB, s broker.Session, queue string, prefetch int) broker.Consumer {
	t.Helper()
	c, err := s.Consume(context.Background(), broker.ConsumeOptions{Queue: queue, Prefetch: prefetch})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// next receives a delivery that is already in the channel. The embedded broker delivers within the call that makes the
// delivery possible.
func next(t testing.TB, c broker.Consumer) broker.Delivery {
	t.Helper()
	select {
	case d, ok := <-c.Deliveries():
		if !ok {
			t.Fatalf("deliveries are closed: %v", c.Err())
		}
		return d
	default:
		t.Fatal("no delivery in the channel")
		panic("unreachable")
	}
}

// get takes all ready messages.
func get(t testing.TB, s broker.Session, queue string) []broker.Delivery {
	t.Helper()
	got, err := s.TryGet(context.Background(), queue, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// wantGet takes all ready messages and compares "ID" or, with losses, "ID/losses".
func wantGet(t testing.TB, s broker.Session, queue string, want ...string) []broker.Delivery {
	t.Helper()
	got := get(t, s, queue)
	var names []string
	for _, d := range got {
		name := d.ID
		if d.Losses > 0 {
			name += fmt.Sprint("/", d.Losses)
		}
		names = append(names, name)
	}
	if fmt.Sprint(names) != fmt.Sprint(want) {
		t.Fatalf("queue %q holds %v, want %v", queue, names, want)
	}
	return got
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
