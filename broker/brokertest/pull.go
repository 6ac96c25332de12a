package brokertest

import "github.com/seed-416683c9/dispatcher/broker"

func testPull(a *area) {
	a.test("nothing ready is not an error", func(k *kit) {
		q := k.queue("q")
		ds, err := k.s.TryGet(k.ctx, q, 5)
		k.ok("TryGet", err)
		k.expectIDs(ds)
	})

	a.test("the oldest come first and at most max", func(k *kit) {
		q := k.queue("q")
		msgs := messages(q, 10)
		k.send(msgs...)
		var got []broker.Delivery
		k.eventually("all messages", func() bool {
			ds, err := k.s.TryGet(k.ctx, q, 3)
			k.must("TryGet", err)
			if len(ds) > 3 {
				k.Errorf("TryGet of 3 returned %d messages", len(ds))
			}
			got = append(got, ds...)
			return len(got) >= len(msgs)
		})
		k.expectIDs(got, ids(msgs)...)
		ds, err := k.s.TryGet(k.ctx, q, 3) // messages handed out are not ready
		k.ok("TryGet", err)
		k.expectIDs(ds)
	})

	a.test("fewer than max are all that was ready", func(k *kit) {
		q := k.queue("q")
		msgs := ids(messages(q, 10))
		k.send(messages(q, 10)...)
		for _, want := range [][]string{msgs[:4], msgs[4:8], msgs[8:], nil} {
			ds, err := k.s.TryGet(k.ctx, q, 4)
			k.must("TryGet", err)
			k.expectIDs(ds, want...)
		}
	})

	a.test("TryGet does not wait for more than there is", func(k *kit) {
		q := k.queue("q")
		k.send(message(q, "m"))
		k.eventually("the one message of a TryGet of 100", func() bool {
			ds, err := k.s.TryGet(k.ctx, q, 100)
			k.must("TryGet", err)
			return len(ds) == 1
		})
	})

	a.test("what was pulled is whole and settled like every delivery", func(k *kit) {
		q, dead := k.queueAndDead("q")
		want := richMessage(q, "m")
		k.send(want)
		d := k.take(k.s, q, 1)[0]
		k.same(d.Message, want)
		if d.Queue != q || d.Redelivered || d.Losses != 0 {
			k.Errorf("Queue %q, Redelivered %v, Losses %d, want %q, false, 0", d.Queue, d.Redelivered, d.Losses, q)
		}
		k.ok("release", d.Release())
		d = k.take(k.s, q, 1)[0]
		if !d.Redelivered || d.Losses != 0 {
			k.Errorf("after release: Redelivered %v, Losses %d, want true, 0", d.Redelivered, d.Losses)
		}
		k.must("retry", d.Retry(k.ctx, d.Forward(), 0))
		d = k.take(k.s, q, 1)[0]
		k.must("dead-letter", d.DeadLetter(k.ctx, d.Forward()))
		d = k.take(k.s, dead, 1)[0]
		k.same(d.Message, want)
		k.ok("ack", d.Ack())
		k.close(k.s)
		k.expectLeft(q)
		k.expectLeft(dead)
	})

	// A quorum queue of RabbitMQ forgets acks beyond 32 if the channel is closed right after (measured on 3.10.8).
	a.test("acks of many that were pulled at once are not lost", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 200)...)
		for _, d := range k.take(k.s, q, 200) {
			k.ok("ack", d.Ack())
		}
		k.close(k.s)
		k.expectLeft(q)
	})

	a.test("what was pulled is given back when the session ends", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 4)...)
		s1, s2 := k.open(), k.open()
		d1, d2 := k.take(s1, q, 2), k.take(s2, q, 2)
		k.close(s1)
		k.kill(s2)
		for _, d := range append(d1, d2...) {
			k.wait("Lost", d.Lost())
			k.is("ack", d.Ack(), broker.ErrDeliveryLost)
		}
		k.expectLeft(q, "m0000", "m0001", "m0002", "m0003")
	})

	a.test("what was settled is seen so by the next call", func(k *kit) {
		q := k.queue("q")
		const n = 100
		msgs := messages(q, n)
		k.send(msgs...)
		ds := k.take(k.s, q, n)
		for range 10 {
			for _, d := range ds {
				k.ok("release", d.Release())
			}
			var err error
			ds, err = k.s.TryGet(k.ctx, q, n)
			k.must("TryGet", err)
			k.expectIDs(ds, ids(msgs)...)
		}
		for i, d := range ds {
			if i%2 == 0 {
				k.ok("ack", d.Ack())
			} else {
				k.ok("release", d.Release())
			}
		}
		purged, err := k.s.Purge(k.ctx, q)
		k.must("Purge", err)
		if purged != n/2 {
			k.Errorf("%d purged, want %d", purged, n/2)
		}
	})

	a.test("many that pull at once share the messages", func(k *kit) {
		q := k.queue("q")
		const n = 100
		k.send(messages(q, n)...)
		got := make(chan broker.Delivery, 2*n)
		k.parallel("TryGet", 4, func(int) {
			for len(got) < n && k.ctx.Err() == nil {
				ds, err := k.s.TryGet(k.ctx, q, 3)
				if err != nil {
					k.Errorf("TryGet: %v", err)
					return
				}
				for _, d := range ds {
					k.ok("ack", d.Ack())
					got <- d
				}
			}
		})
		seen := make(map[string]bool)
		for range len(got) {
			d := <-got
			if seen[d.ID] {
				k.Errorf("%q was pulled twice", d.ID)
			}
			seen[d.ID] = true
		}
		k.close(k.s)
		k.expectLeft(q)
	})
}
