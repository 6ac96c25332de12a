package brokertest

import (
	"fmt"

	"github.com/seed-416683c9/dispatcher/broker"
)

// testPrefetch proves that a consumer gets no more than its limit: another consumer receives all the rest.
func testPrefetch(a *area) {
	a.test("no more than Prefetch are handed out", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 5+20)...)
		c := k.consume(k.s, q, 5)
		if n := cap(c.Deliveries()); n != 5 {
			k.Errorf("capacity of Deliveries is %d, want the Prefetch of 5", n)
		}
		k.receiveN(c, 5)
		k.receiveN(k.consume(k.open(), q, 20), 20)
		k.idle(c)
	})

	a.test("every settlement makes room for one", func(k *kit) {
		q, _, _ := k.family("q")
		const held = 3
		n := len(settlements)
		k.send(messages(q, held+n+10)...)
		c := k.consume(k.s, q, held)
		ds := k.receiveN(c, held)
		for _, settle := range settlements {
			k.must(settle.name, settle.do(k, ds[0]))
			ds = append(ds[1:], k.receive(c))
		}
		// One of these is gone, one is a dead letter, one a suspect.
		// Two came back and are held by the other consumer or c.
		k.receiveN(k.consume(k.open(), q, 20), n+10-3)
		k.idle(c)
	})

	a.test("a lower limit holds once enough are settled", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 4+6)...)
		c := k.consume(k.s, q, 4)
		ds := k.receiveN(c, 4)
		k.must("SetPrefetch", c.SetPrefetch(k.ctx, 2))
		for _, d := range ds[:2] { // deliveries handed out already are not taken back
			k.must("ack", d.Ack())
		}
		other := k.consume(k.open(), q, 6)
		k.receiveN(other, 6)
		k.idle(c)
		k.must("stop the other", other.Stop(k.ctx))

		k.send(messages(q, 2)...)
		k.must("ack", ds[2].Ack())
		k.receive(c)
		k.must("ack", ds[3].Ack())
		k.receive(c)
	})

	a.test("a limit of zero pauses until it is raised", func(k *kit) {
		q := k.queue("q")
		c := k.consume(k.s, q, 3)
		k.must("SetPrefetch 0", c.SetPrefetch(k.ctx, 0))
		k.send(messages(q, 2)...)
		for _, d := range k.take(k.open(), q, 2) { // both go to another consumer
			k.must("ack", d.Ack())
		}
		k.idle(c)
		k.send(messages(q, 5)...)
		k.must("SetPrefetch 2", c.SetPrefetch(k.ctx, 2))
		k.receiveN(c, 2)
		k.receiveN(k.consume(k.open(), q, 2), 2)
		k.idle(c)
		k.must("SetPrefetch 3", c.SetPrefetch(k.ctx, 3))
		k.receive(c)
	})

	a.test("a limit of zero leaves nothing on its way", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 60)...)
		c := k.consume(k.s, q, 30)
		k.must("SetPrefetch 0", c.SetPrefetch(k.ctx, 0))
		n := len(c.Deliveries())
		k.receiveN(k.consume(k.open(), q, 60), 60-n)
		if more := len(c.Deliveries()) - n; more > 0 {
			k.Errorf("%d deliveries came after SetPrefetch had returned", more)
		}
	})

	a.test("a limit may be raised to MaxPrefetch", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 5+20)...)
		c, err := k.s.Consume(k.ctx, broker.ConsumeOptions{Queue: q, Prefetch: 2, MaxPrefetch: 5})
		k.must("consume", err)
		if n := cap(c.Deliveries()); n != 5 {
			k.Errorf("capacity of Deliveries is %d, want the MaxPrefetch of 5", n)
		}
		k.receiveN(c, 2)
		k.must("SetPrefetch 5", c.SetPrefetch(k.ctx, 5))
		k.receiveN(c, 3)
		k.receiveN(k.consume(k.open(), q, 20), 20)
		k.idle(c)
		if err := c.SetPrefetch(k.ctx, 6); err == nil {
			k.Error("SetPrefetch above the MaxPrefetch of the consumer succeeded")
		}
	})

	a.test("a consumer that began with one keeps the order when its limit changes", func(k *kit) {
		q := k.queue("q")
		const n = 300
		k.send(messages(q, n)...)
		c, err := k.s.Consume(k.ctx, broker.ConsumeOptions{Queue: q, Prefetch: 1, MaxPrefetch: 100})
		k.must("consume", err)
		limits := []int{2, 40, 100, 3, 1, 60, 0, 20}
		for i := range n {
			if i%10 == 5 {
				limit := limits[i/10%len(limits)]
				k.must("SetPrefetch", c.SetPrefetch(k.ctx, limit))
				if limit == 0 {
					k.must("SetPrefetch", c.SetPrefetch(k.ctx, 1))
				}
			}
			d := k.receive(c)
			if want := fmt.Sprintf("m%04d", i); d.ID != want {
				k.Fatalf("got %s, want %s", d.ID, want)
			}
			k.must("ack", d.Ack())
		}
		k.idle(c)
	})

	a.test("a limit above Prefetch is an error and changes nothing", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 2+4)...)
		c := k.consume(k.s, q, 2)
		if err := c.SetPrefetch(k.ctx, 3); err == nil {
			k.Error("SetPrefetch above the Prefetch of the consumer succeeded")
		}
		ds := k.receiveN(c, 2)
		k.receiveN(k.consume(k.open(), q, 4), 4)
		k.idle(c)
		k.send(message(q, "next"))
		k.must("ack", ds[0].Ack())
		if d := k.receive(c); d.ID != "next" {
			k.Errorf("got %q, want the next message", d.ID)
		}
	})

	a.test("a Prefetch below one or above MaxPrefetch is an error", func(k *kit) {
		q := k.queue("q")
		for _, o := range []broker.ConsumeOptions{
			{Prefetch: 0}, {Prefetch: -1}, {Prefetch: 0, MaxPrefetch: 2}, {Prefetch: 3, MaxPrefetch: 2},
			{Prefetch: 1, MaxPrefetch: -1},
		} {
			o.Queue = q
			if _, err := k.s.Consume(k.ctx, o); err == nil {
				k.Errorf("Consume with %+v succeeded", o)
			}
		}
		k.send(message(q, "m"))
		k.receive(k.consume(k.s, q, 1))
	})

	a.test("consumers of one session have their own limits", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 2+3+4)...)
		c1, err := k.s.Consume(k.ctx, broker.ConsumeOptions{Queue: q, Prefetch: 2, Tag: "a name of its own"})
		k.must("consume with a tag", err)
		k.receiveN(c1, 2)
		c2 := k.consume(k.s, q, 3)
		k.receiveN(c2, 3)
		k.receiveN(k.consume(k.s, q, 4), 4)
		k.idle(c1)
		k.idle(c2)
	})
}

// idle checks that a consumer is live and has no deliveries.
func (k *kit) idle(c broker.Consumer) {
	k.Helper()
	select {
	case d, ok := <-c.Deliveries():
		if !ok {
			k.Fatalf("the consumer ended: %v", c.Err())
		}
		k.Errorf("%q was handed out above the limit", d.ID)
	default:
	}
}
