package brokertest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/seed-416683c9/dispatcher/broker"
)

func testPublish(a *area) {
	a.test("confirmed messages are in their queue", func(k *kit) {
		q := k.queue("q")
		msgs := messages(q, 200)
		k.send(msgs...)
		k.expectLeft(q, ids(msgs)...)
	})

	// The messages are more than any window of unconfirmed ones, so that Publish has to wait in between.
	a.test("done runs exactly once for every message of a long publish", func(k *kit) {
		q := k.queue("q")
		msgs := messages(q, 4000)
		o := newOutcomes(len(msgs))
		k.returns("Publish", func() { k.s.Publish(k.ctx, msgs, o.done) })
		k.wait("the outcome of every message", o.all)
		k.close(k.s) // no done function is called afterwards
		k.wait("the session's Done", k.s.Done())
		o.once(k)
		for i, err := range o.errs {
			k.must("publish of message "+msgs[i].ID, err)
		}
	})

	a.test("an empty publish calls nobody", func(k *kit) {
		k.returns("Publish", func() {
			k.s.Publish(k.ctx, nil, func(i int, err error) { k.Errorf("done(%d, %v) of no message", i, err) })
		})
	})

	a.test("an unroutable message is rejected and its neighbours are confirmed", func(k *kit) {
		q, key := k.queue("q"), k.name("key")
		k.bind(key, q)
		nowhere := message(k.name("no-queue"), "to no queue")
		unbound := message(k.name("no-binding"), "to no binding")
		unbound.Exchange = directExchange
		bound := message(key, "bound")
		bound.Exchange = directExchange

		errs := k.publish(k.s, message(q, "first"), nowhere, bound, unbound, message(q, "last"))
		for _, i := range []int{1, 3} {
			k.is("publish to nowhere", errs[i], broker.ErrUnroutable)
			k.is("publish to nowhere", errs[i], broker.ErrRejected)
			k.oneOutcome(errs[i])
		}
		for _, i := range []int{0, 2, 4} {
			k.ok("publish beside an unroutable one", errs[i])
		}
		k.expectLeft(q, "first", "bound", "last")
	})

	// AMQP closes the channel on such a publish, which affects all messages in flight there.
	a.test("a message to a missing exchange is refused and its neighbours are confirmed", func(k *kit) {
		q := k.queue("q")
		m := message("key", "m")
		m.Exchange = k.name("no-exchange")
		errs := k.publish(k.s, message(q, "first"), m, message(q, "last"))
		k.ok("publish before a missing exchange", errs[0])
		k.is("publish to a missing exchange", errs[1], broker.ErrRejected)
		k.oneOutcome(errs[1])
		k.ok("publish after a missing exchange", errs[2])
		k.expectLeft(q, "first", "last")
	})

	a.test("an empty id is refused and its neighbours are confirmed", func(k *kit) {
		q := k.queue("q")
		errs := k.publish(k.s, message(q, "first"), message(q, ""), message(q, "last"))
		k.ok("publish before an empty id", errs[0])
		k.is("publish of an empty id", errs[1], broker.ErrRejected)
		k.oneOutcome(errs[1])
		k.ok("publish after an empty id", errs[2])
		k.expectLeft(q, "first", "last")
	})

	// An AMQP short string of 300 bytes once travelled as its first 44, to another queue.
	a.test("a routing key above 255 bytes is refused and the session lives", func(k *kit) {
		q := k.queue("q")
		errs := k.publish(k.s, message(q+strings.Repeat("x", 256), "long"), message(q, "m"))
		k.is("publish with a long routing key", errs[0], broker.ErrRejected)
		k.ok("publish after it", errs[1])
		k.expectLeft(q, "m")
	})

	a.test("a message arrives as it was sent", func(k *kit) {
		q, key := k.queue("q"), k.name("key")
		k.bind(key, q)
		want := richMessage(key, "rich")
		want.Exchange = directExchange
		bare := broker.Message{RoutingKey: q, ID: "bare"}
		k.send(want) // messages to different exchanges may overtake each other
		k.send(bare)
		c := k.consume(k.s, q, 2)

		d := k.receive(c)
		k.same(d.Message, want)
		k.route(d, want.Exchange, want.RoutingKey)
		if d.Queue != q || d.Redelivered || d.Losses != 0 {
			k.Errorf("first delivery: Queue %q, Redelivered %v, Losses %d, want %q, false, 0",
				d.Queue, d.Redelivered, d.Losses, q)
		}
		d = k.receive(c)
		k.same(d.Message, bare)
		if !d.Timestamp.IsZero() {
			k.Errorf("no timestamp was sent, %v arrived", d.Timestamp)
		}
	})

	a.test("a body arrives byte for byte", func(k *kit) {
		q := k.queue("q")
		c := k.consume(k.s, q, 1)
		binary := make([]byte, 256)
		for i := range binary {
			binary[i] = byte(i)
		}
		large := make([]byte, 512<<10) // more than one AMQP frame
		for i := range large {
			large[i] = byte(rand.Uint32())
		}
		for i, body := range [][]byte{{}, {0}, binary, large, bytes.Repeat([]byte("\xce"), 4096)} {
			m := message(q, fmt.Sprint(i))
			m.Body = body
			k.send(m)
			d := k.receive(c)
			k.same(d.Message, m)
			k.ok("ack", d.Ack())
		}
	})

	a.test("a message reaches every queue of its key and only these, once each", func(k *kit) {
		q1, q2, q3 := k.queue("q1"), k.queue("q2"), k.queue("q3")
		key, other := k.name("key"), k.name("other")
		k.bind(key, q1, q2)
		k.bind(other, q1, q3) // a second binding of q1
		k.bind(key, q1)       // the same binding again
		m := message(key, "m")
		m.Exchange = directExchange
		k.send(m)
		k.expectLeft(q1, "m")
		k.expectLeft(q2, "m")
		k.expectLeft(q3)
	})

	a.test("an id in flight twice gets two outcomes, each its own", func(k *kit) {
		q, nowhere := k.queue("q"), k.name("no-queue")
		good, bad := message(q, "same"), message(nowhere, "same")
		errs := k.publish(k.s, good, bad, good, bad, bad, good)
		for i, want := range []error{nil, broker.ErrUnroutable, nil, broker.ErrUnroutable, broker.ErrUnroutable, nil} {
			k.is(fmt.Sprintf("message %d", i), errs[i], want)
		}
		const n = 8
		var outs [n]*outcomes
		k.parallel("Publish", n, func(i int) {
			m := good
			if i%2 == 1 {
				m = bad
			}
			outs[i] = newOutcomes(1)
			k.s.Publish(k.ctx, []broker.Message{m}, outs[i].done)
		})
		for i, o := range outs {
			k.wait("the outcome of a duplicate", o.all)
			if i%2 == 1 {
				k.is("unroutable duplicate", o.errs[0], broker.ErrUnroutable)
			} else {
				k.ok("routable duplicate", o.errs[0])
			}
		}
		k.expectLeft(q, "same", "same", "same", "same", "same", "same", "same")
	})

	a.test("many publishers at once get their own outcomes", func(k *kit) {
		q, nowhere := k.queue("q"), k.name("no-queue")
		const n, each = 8, 50
		var outs [n]*outcomes
		k.parallel("Publish", n, func(i int) {
			msgs := make([]broker.Message, each)
			for j := range msgs {
				msgs[j] = message([]string{q, nowhere}[j%2], fmt.Sprintf("%d-%d", i, j))
			}
			outs[i] = newOutcomes(each)
			k.s.Publish(k.ctx, msgs, outs[i].done)
		})
		var want []string
		for i, o := range outs {
			k.wait("the outcome of every message", o.all)
			for j, err := range o.errs {
				if j%2 == 1 {
					k.is("unroutable message", err, broker.ErrUnroutable)
					continue
				}
				k.ok("routable message", err)
				want = append(want, fmt.Sprintf("%d-%d", i, j))
			}
		}
		k.expectLeft(q, want...)
	})

	a.test("a publish whose context has ended tells the truth", func(k *kit) {
		q := k.queue("q")
		o := newOutcomes(1)
		k.returns("Publish", func() { k.s.Publish(ended(), []broker.Message{message(q, "m")}, o.done) })
		k.wait("the outcome", o.all)
		k.oneOutcome(o.errs[0])
		switch err := o.errs[0]; {
		case err == nil:
			k.expectLeft(q, "m")
		case errors.Is(err, broker.ErrNotSent):
			k.expectLeft(q)
		default:
			k.Errorf("got %v, want confirmed or not sent", err)
		}
	})
}
