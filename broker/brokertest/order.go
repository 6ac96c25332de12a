package brokertest

import (
	"slices"

	"github.com/seed-416683c9/dispatcher/broker"
)

func testOrder(a *area) {
	a.test("one consumer receives in the order of publishing", func(k *kit) {
		q := k.queue("q")
		msgs := messages(q, 300)
		k.send(msgs[:100]...)
		c := k.consume(k.s, q, 7)
		// Later publishes do not wait for the outcome of earlier ones.
		o1, o2 := newOutcomes(100), newOutcomes(100)
		k.returns("Publish", func() {
			k.s.Publish(k.ctx, msgs[100:200], o1.done)
			k.s.Publish(k.ctx, msgs[200:], o2.done)
		})
		var got []string
		for range msgs {
			d := k.receive(c)
			got = append(got, d.ID)
			k.ok("ack", d.Ack())
		}
		if want := ids(msgs); !slices.Equal(got, want) {
			k.Errorf("arrived in the order %q", got)
		}
	})

	a.test("messages that wait come in order", func(k *kit) {
		q := k.queue("q")
		msgs := messages(q, 100)
		k.send(msgs...)
		if got := k.left(q, ids(msgs)...); !slices.Equal(got, ids(msgs)) {
			k.Errorf("arrived in the order %q", got)
		}
	})

	// The contract only says "about the place it had", so only the end of a long queue is wrong.
	a.test("a released message does not go to the end of the queue", func(k *kit) {
		q := k.queue("q")
		msgs := messages(q, 100)
		k.send(msgs...)
		c := k.consume(k.s, q, 1)
		first := k.receive(c)
		k.must("release", first.Release())
		for range 50 {
			d := k.receive(c)
			k.ok("ack", d.Ack())
			if d.ID == first.ID {
				return
			}
		}
		k.Error("a released message was not among the next 50 of 100")
	})

	// Each chunk is settled through a channel of its own, so the broker must receive one before the next.
	a.test("released messages are in their old order again", func(k *kit) {
		q := k.queue("q")
		msgs := messages(q, 30)
		k.send(msgs...)
		var chunks [][]broker.Delivery
		for range 3 {
			chunks = append(chunks, k.take(k.s, q, 10))
		}
		if k.s.Capabilities().KeepsPlace { // neither from the oldest nor from the newest
			chunks[0], chunks[1], chunks[2] = chunks[2], chunks[0], chunks[1]
		}
		for _, chunk := range chunks {
			for _, d := range chunk {
				k.ok("release", d.Release())
			}
			_, err := k.s.Inspect(k.ctx, q)
			k.ok("Inspect", err)
		}
		if got := k.left(q, ids(msgs)...); !slices.Equal(got, ids(msgs)) {
			k.Errorf("arrived in the order %q", got)
		}
	})
}
