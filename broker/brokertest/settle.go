package brokertest

import (
	"slices"
	"sync/atomic"

	"github.com/seed-416683c9/dispatcher/broker"
)

// settlements are the four ways to end a delivery.
var settlements = []struct {
	name string
	do   func(k *kit, d broker.Delivery) error
}{
	{"ack", func(_ *kit, d broker.Delivery) error { return d.Ack() }},
	{"release", func(_ *kit, d broker.Delivery) error { return d.Release() }},
	{"retry", func(k *kit, d broker.Delivery) error { return d.Retry(k.ctx, d.Forward(), 0) }},
	{"deadletter", func(k *kit, d broker.Delivery) error { return d.DeadLetter(k.ctx, d.Forward()) }},
}

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
		q, dead := k.queueAndDead("q")
		var inQueue, inDead []string
		for _, first := range settlements {
			for _, second := range settlements {
				id := first.name + " then " + second.name
				k.send(message(q, id))
				switch first.name {
				case "release", "retry":
					inQueue = append(inQueue, id)
				case "deadletter":
					inDead = append(inDead, id)
				}
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
					k.Errorf("%s: Lost is closed by settling", d.ID)
				}
			}
		}
		k.close(k.s)
		k.expectLeft(q, inQueue...) // the second did nothing
		k.expectLeft(dead, inDead...)
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
			if released.Load() == 1 { // so that the queue is empty in the end
				k.ok("ack of the released message", k.take(k.s, q, 1)[0].Ack())
			}
		}
		k.close(k.s)
		k.expectLeft(q)
	})

	a.test("a retry comes back to its own queue only, with what it was given", func(k *kit) {
		q, other, key := k.queue("q"), k.queue("other"), k.name("key")
		k.bind(key, q, other)
		m := richMessage(key, "m")
		m.Exchange = directExchange
		k.send(m)
		c := k.consume(k.s, q, 1)
		d := k.receive(c)
		again := d.Forward()
		again.Headers["attempt"] = int64(1)
		again.Body = []byte("a new body")
		k.must("retry", d.Retry(k.ctx, again, 0))

		d = k.receive(c)
		k.same(d.Message, again)
		if d.Queue != q || d.Losses != 0 {
			k.Errorf("retried: Queue %q, Losses %d, want %q, 0", d.Queue, d.Losses, q)
		}
		elsewhere := d.Forward()
		elsewhere.Exchange, elsewhere.RoutingKey = "", other // not used
		k.must("retry", d.Retry(k.ctx, elsewhere, 0))
		k.ok("ack", k.receive(c).Ack())
		k.close(k.s)
		k.expectLeft(q)
		k.expectLeft(other, "m") // from the first publish
	})

	a.test("a failed retry leaves the delivery open", func(k *kit) {
		q, dead := k.queueAndDead("q")
		k.send(messages(q, len(settlements))...)
		for i, d := range k.take(k.s, q, len(settlements)) {
			if err := d.Retry(ended(), d.Forward(), 0); err == nil {
				k.Error("a retry whose context had ended succeeded")
			}
			k.ok("settling after it by "+settlements[i].name, settlements[i].do(k, d))
		}
		k.close(k.s)
		// left waits for these. More may be there: a retry that failed may have written its copy.
		k.left(q, "m0001", "m0002")
		k.left(dead, "m0003")
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
			k.Errorf("%d messages came as %d different ones", n, len(slices.Compact(got)))
		}
		k.close(k.s)
		k.close(s2)
		k.expectLeft(q)
	})
}
