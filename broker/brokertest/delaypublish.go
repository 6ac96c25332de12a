package brokertest

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// testDelayedPublish is the part of the area "delay" that tests Message.NotBefore, for brokers that have delays.
func testDelayedPublish(test func(name string, f func(k *kit))) {
	test("a delayed publish comes whole, to every queue of its key only, and not before", func(k *kit) {
		q1, q2, other := k.queue("q1"), k.queue("q2"), k.queue("other")
		key := k.name("key")
		k.bind(key, q1, q2)
		k.bind(k.name("other key"), other, q1)
		want := richMessage(key, "m")
		want.Exchange, want.NotBefore = directExchange, time.Now().Add(300*time.Millisecond)
		k.send(want)
		k.send(message(q1, "meanwhile"))
		c1, c2 := k.consume(k.s, q1, 2), k.consume(k.s, q2, 1)
		for _, d := range []broker.Delivery{k.receive(c1), k.receive(c1), k.receive(c2)} {
			k.ok("ack", d.Ack())
			if d.ID != "meanwhile" {
				k.arrived(d, want)
			}
		}
		k.close(k.s)
		for _, queue := range []string{q1, q2, other} {
			k.expectLeft(queue)
		}
	})

	test("a delayed publish to the default exchange goes to the queue of that name", func(k *kit) {
		q, other := k.queue("q"), k.queue("other")
		k.bind(q, other) // the key of another exchange may be the name of a queue
		want := richMessage(q, "m")
		want.NotBefore = time.Now().Add(200 * time.Millisecond)
		k.send(want)
		d := k.receive(k.consume(k.s, q, 1))
		k.arrived(d, want)
		k.ok("ack", d.Ack())
		k.close(k.s)
		k.expectLeft(q)
		k.expectLeft(other)
	})

	// A time from the wire has no monotonic reading.
	test("delayed publishes come once each and never early, however many", func(k *kit) {
		seed := uint64(time.Now().UnixNano())
		k.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 1))
		q, key := k.queue("q"), k.name("key")
		k.bind(key, q)
		const n = 300
		msgs := messages(q, n)
		want := make(map[string]broker.Message, n)
		for i := range msgs {
			if i%2 == 0 {
				msgs[i].Exchange, msgs[i].RoutingKey = directExchange, key
			}
			msgs[i].NotBefore = time.Now().Add(time.Duration(random.IntN(700)) * time.Millisecond)
			if i%3 == 0 {
				msgs[i].NotBefore = msgs[i].NotBefore.UTC().Round(0)
			}
			want[msgs[i].ID] = msgs[i]
		}
		k.send(msgs...)
		c := k.consume(k.s, q, 20)
		for range n {
			d := k.receive(c)
			m, ok := want[d.ID]
			if !ok {
				k.Fatalf("%q came twice", d.ID)
			}
			k.arrived(d, m)
			delete(want, d.ID)
			k.ok("ack", d.Ack())
		}
		k.close(k.s)
		k.expectLeft(q)
	})

	test("a time that has come is none", func(k *kit) {
		q, nowhere := k.queue("q"), k.name("no-queue")
		for i, at := range []time.Time{{}, time.Now(), time.Now().Add(-time.Hour).Round(0), time.Unix(0, 0)} {
			m, unroutable := message(q, fmt.Sprint(i)), message(nowhere, fmt.Sprint(i, " to nowhere"))
			m.NotBefore, unroutable.NotBefore = at, at
			errs := k.publish(k.s, m, unroutable)
			k.ok("publish", errs[0])
			k.is("publish to nowhere", errs[1], broker.ErrUnroutable)
			k.oneOutcome(errs[1])
		}
		k.expectLeft(q, "0", "1", "2", "3") // confirmed messages are in the queue
	})

	test("a delay above the limit is refused and touches nothing", func(k *kit) {
		q := k.queue("q")
		first, last := message(q, "first"), message(q, "last")
		for i, at := range []time.Time{
			time.Now().Add(broker.MaxDelay + time.Minute),
			time.Now().Add(math.MaxInt64),
			time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC),
		} {
			late := message(q, fmt.Sprint("late", i))
			late.NotBefore = at
			errs := k.publish(k.s, first, late, last)
			k.ok("publish before it", errs[0])
			k.is("publish of it", errs[1], broker.ErrRejected)
			k.oneOutcome(errs[1])
			k.ok("publish after it", errs[2])
		}
		k.expectLeft(q, "first", "first", "first", "last", "last", "last")

		k.send(message(q, "m"))
		d := k.take(k.s, q, 1)[0]
		for _, delay := range []time.Duration{broker.MaxDelay + time.Minute, math.MaxInt64} {
			err := d.Retry(k.ctx, d.Forward(), delay)
			k.is("retry", err, broker.ErrRejected)
			k.oneOutcome(err)
		}
		if closed(d.Lost()) {
			k.Error("a retry that was refused closed Lost")
		}
		k.must("retry", d.Retry(k.ctx, d.Forward(), 50*time.Millisecond))
		k.close(k.s)
		k.expectLeft(q, "m")
	})

	// This is the only message that the suite leaves in a broker.
	test("a delay of 300 days is taken and holds nobody up", func(k *kit) {
		q := k.queue("q")
		long, short := message(q, "long"), message(q, "short")
		long.NotBefore = time.Now().Add(300 * 24 * time.Hour)
		short.NotBefore = time.Now().Add(100 * time.Millisecond)
		k.send(long, short)
		k.expectLeft(q, "short")
	})

	test("delayed publishes outlive the session that published them", func(k *kit) {
		q := k.queue("q")
		due := time.Now().Add(300 * time.Millisecond)
		for i, end := range []func(s broker.Session){k.close, func(s broker.Session) { k.kill(s) }} {
			s := k.open()
			m := message(q, fmt.Sprint(i))
			m.NotBefore = due
			k.ok("publish", k.publish(s, m)[0])
			end(s)
		}
		k.expectLeft(q, "0", "1")
		if early := time.Until(due); early > 0 {
			k.Errorf("came %v early", early)
		}
	})

	test("what is delayed can be delayed again", func(k *kit) {
		q, key := k.queue("q"), k.name("key")
		k.bind(key, q)
		want := richMessage(key, "m")
		want.Exchange, want.NotBefore = directExchange, time.Now().Add(100*time.Millisecond)
		k.send(want)
		c := k.consume(k.s, q, 1)
		d := k.receive(c)
		k.arrived(d, want)
		for i, delay := range []time.Duration{150 * time.Millisecond, 40 * time.Millisecond, 90 * time.Millisecond} {
			again := d.Forward()
			again.Headers["attempt"] = int64(i + 1)
			start := time.Now()
			k.must("retry", d.Retry(k.ctx, again, delay))
			d = k.receive(c)
			if took := time.Since(start); took < delay {
				k.Errorf("retry %d came after %v, want %v at least", i, took, delay)
			}
			k.copied(d, q, again)
		}
		k.ok("ack", d.Ack())
		k.close(k.s)
		k.expectLeft(q)
	})
}

// testNoDelay tests brokers that have no delays.
func testNoDelay(k *kit) {
	q := k.queue("q")
	late, past := message(q, "late"), message(q, "past")
	late.NotBefore, past.NotBefore = time.Now().Add(time.Minute), time.Now().Add(-time.Minute)
	errs := k.publish(k.s, message(q, "first"), late, past)
	k.ok("publish before it", errs[0])
	k.is("publish with a delay", errs[1], errors.ErrUnsupported)
	k.ok("publish of what is due", errs[2])
	k.expectLeft(q, "first", "past")
}

// arrived checks the first delivery of a message that was published with a delay.
func (k *kit) arrived(d broker.Delivery, want broker.Message) {
	k.Helper()
	if early := time.Until(want.NotBefore); early > 0 {
		k.Errorf("%q came %v early", d.ID, early)
	}
	k.same(d.Message, want)
	k.route(d, want.Exchange, want.RoutingKey)
	if d.Redelivered || d.Losses != 0 || !d.NotBefore.IsZero() {
		k.Errorf("%q: Redelivered %v, Losses %d, NotBefore %v, want false, 0, none",
			d.ID, d.Redelivered, d.Losses, d.NotBefore)
	}
}

// needDelay skips the test if the broker has no delays.
func (k *kit) needDelay() {
	k.Helper()
	if !k.s.Capabilities().Delay {
		k.Skip("broker has no delays")
	}
}
