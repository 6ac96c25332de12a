package brokertest

import (
	"slices"
	"sync/atomic"

	"github.com/seed-416683c9/dispatcher/broker"
)

// settlements are the ways to end a delivery.
var settlements = []struct {
	name string
	to   string // suffix of the queue that has the message then; gone = none
	do   func(k *kit, d broker.Delivery) error
}{
	{"ack", gone, func(_ *kit, d broker.Delivery) error { return d.Ack() }},
	{"release", "", func(_ *kit, d broker.Delivery) error { return d.Release() }},
	{"retry", "", func(k *kit, d broker.Delivery) error { return d.Retry(k.ctx, d.Forward(), 0) }},
	{"deadletter", broker.DeadSuffix, func(k *kit, d broker.Delivery) error {
		return d.DeadLetter(k.ctx, d.Forward())
	}},
	{"suspect", broker.SuspectsSuffix, func(k *kit, d broker.Delivery) error { return d.Suspect(k.ctx, d.Forward()) }},
}

const gone = " is gone"

func testSettle(a *area) {
	a.test("acked messages are gone for good", func(k *kit) {
		q := k.queue("q")
		msgs := messages(q, 300)
		k.send(msgs...)
		c := k.consume(k.s, q, 50) // acks must make room, even if the session sends several at once
		for range msgs {
			k.ok("ack", k.receive(c).Ack())
		}
		k.close(k.s)
		k.expectLeft(q)
	})

	a.test("a released message comes back whole and uncharged", func(k *kit) {
		q := k.queue("q")
		want := richMessage(q, "m")
		k.send(want)
		c := k.consume(k.s, q, 1)
		for range 3 {
			k.ok("release", k.receive(c).Release())
		}
		d := k.receive(c)
		k.same(d.Message, want)
		if !d.Redelivered || d.Losses != 0 {
			k.Errorf("after three releases: Redelivered %v, Losses %d, want true, 0", d.Redelivered, d.Losses)
		}
		k.ok("ack", d.Ack())
		k.close(k.s)
		k.expectLeft(q)
	})

	a.test("a settled delivery cannot be settled again", func(k *kit) {
		q, dead, suspects := k.family("q")
		left := make(map[string][]string)
		for _, first := range settlements {
			for _, second := range settlements {
				id := first.name + " then " + second.name
				k.send(message(q, id))
				left[q+first.to] = append(left[q+first.to], id)
			}
		}
		ds := k.take(k.s, q, len(settlements)*len(settlements))
		for i, first := range settlements {
			for j, second := range settlements {
				d := ds[i*len(settlements)+j]
				k.ok(d.ID+": the first", first.do(k, d))
				k.is(d.ID+": the second", second.do(k, d), broker.ErrSettled)
				k.is(d.ID+": the third", d.Ack(), broker.ErrSettled)
				if closed(d.Lost()) {
					k.Errorf("%s: settling closed Lost", d.ID)
				}
			}
		}
		k.close(k.s)
		for _, queue := range []string{q, dead, suspects} {
			k.expectLeft(queue, left[queue]...) // the second settlement did nothing
		}
	})

	a.test("of many that settle at once one wins", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 20)...)
		for _, d := range k.take(k.s, q, 20) {
			var won, released atomic.Int32
			k.parallel("settling", 4, func(i int) {
				do := d.Ack
				if i%2 == 1 {
					do = d.Release
				}
				if err := do(); err == nil {
					won.Add(1)
					released.Add(int32(i % 2))
				} else {
					k.is("the loser", err, broker.ErrSettled)
				}
			})
			if n := won.Load(); n != 1 {
				k.Errorf("%d of 4 settled %s, want 1", n, d.ID)
			}
			if released.Load() == 1 { // leaves the queue empty
				k.ok("ack of the released message", k.take(k.s, q, 1)[0].Ack())
			}
		}
		k.close(k.s)
		k.expectLeft(q)
	})

	a.test("two consumers of a queue share it and every message is handled once", func(k *kit) {
		q := k.queue("q")
		const n = 200
		s2 := k.open()
		c1, c2 := k.consume(k.s, q, 3), k.consume(s2, q, 3)
		msgs := messages(q, n)
		k.send(msgs...)
		var got []string
		for range n {
			var d broker.Delivery
			select {
			case d = <-c1.Deliveries():
			case d = <-c2.Deliveries():
			case <-k.ctx.Done():
				k.Fatalf("received %d of %d messages", len(got), n)
			}
			if d.Settler == nil {
				k.Fatalf("a consumer ended: %v, %v", c1.Err(), c2.Err())
			}
			got = append(got, d.ID)
			k.ok("ack", d.Ack())
		}
		slices.Sort(got)
		if !slices.Equal(got, ids(msgs)) {
			k.Errorf("%d deliveries, but only %d different messages", n, len(slices.Compact(got)))
		}
		k.close(k.s)
		k.close(s2)
		k.expectLeft(q)
	})
}
