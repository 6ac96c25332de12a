package memory_test

import (
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// BenchmarkPublishDeliverAck measures the path of a task through the broker.
func BenchmarkPublishDeliverAck(b *testing.B) {
	s := open(b, memory.New())
	ok(b, s.Declare(bg, broker.Topology{
		Exchanges: []broker.Exchange{{Name: "x", Kind: broker.Direct}},
		Queues:    []broker.QueueSpec{{Name: "q"}},
		Bindings:  []broker.Binding{{Queue: "q", Exchange: "x", Key: "k"}},
	}))
	c := consume(b, s, "q", 16)
	msgs := []broker.Message{{Exchange: "x", RoutingKey: "k", ID: "1", Body: make([]byte, 128)}}
	confirm := func(_ int, err error) { ok(b, err) }
	b.ReportAllocs()
	for b.Loop() {
		s.Publish(bg, msgs, confirm)
		if err := (<-c.Deliveries()).Ack(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReleaseInDeepQueue takes and releases messages of a queue of 200,000. The cost may grow only as log n.
func BenchmarkReleaseInDeepQueue(b *testing.B) {
	s := open(b, memory.New())
	declare(b, s, "q")
	fill(b, s, "q", 1, 200_000)
	for _, d := range get(b, s, "q") {
		ok(b, d.Release())
	}
	b.ReportAllocs()
	for b.Loop() {
		got, err := s.TryGet(bg, "q", 1)
		ok(b, err)
		ok(b, got[0].Release())
	}
}
