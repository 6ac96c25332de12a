package brokertest

import (
	"errors"
	"strings"

	"github.com/seed-416683c9/dispatcher/broker"
)

func testTopology(a *area) {
	a.test("one declaration makes exchanges, queues and bindings, for every session", func(k *kit) {
		q, key := k.name("q"), k.name("key")
		k.declare(broker.Topology{
			Exchanges: []broker.Exchange{{Name: directExchange, Kind: broker.Direct}},
			Queues:    []broker.QueueSpec{{Name: q}},
			Bindings:  []broker.Binding{{Queue: q, Exchange: directExchange, Key: key}},
		})
		m := message(key, "m")
		m.Exchange = directExchange
		k.ok("publish from another session", k.publish(k.open(), m)[0])
		k.expectLeft(q, "m")
	})

	a.test("declaring what exists changes nothing", func(k *kit) {
		q, key := k.queue("q"), k.name("key")
		k.bind(key, q)
		k.send(message(q, "m"))
		k.declare(broker.Topology{})
		again := broker.Topology{
			Exchanges: []broker.Exchange{{Name: directExchange, Kind: broker.Direct}},
			Queues:    []broker.QueueSpec{{Name: q}},
			Bindings:  []broker.Binding{{Queue: q, Exchange: directExchange, Key: key}},
		}
		k.declare(again)
		k.must("declare from another session", k.open().Declare(k.ctx, again))
		k.expectLeft(q, "m")
	})

	a.test("the same declared by many at once succeeds", func(k *kit) {
		q, key := k.name("q"), k.name("key")
		s2 := k.open()
		k.parallel("Declare", 8, func(i int) {
			k.ok("declare", []broker.Session{k.s, s2}[i%2].Declare(k.ctx, broker.Topology{
				Exchanges: []broker.Exchange{{Name: directExchange, Kind: broker.Direct}},
				Queues:    []broker.QueueSpec{{Name: q}},
				Bindings:  []broker.Binding{{Queue: q, Exchange: directExchange, Key: key}},
			}))
		})
		m := message(key, "m")
		m.Exchange = directExchange
		k.send(m)
		k.expectLeft(q, "m")
	})

	a.test("an exchange of another kind is refused by name and the session lives", func(k *kit) {
		if !k.s.Capabilities().Fanout {
			k.Skip("broker has no second kind of exchange")
		}
		k.bind(k.name("key"), k.queue("q"))
		fanout := broker.Exchange{Name: directExchange, Kind: broker.Fanout}
		err := k.s.Declare(k.ctx, broker.Topology{Exchanges: []broker.Exchange{fanout}})
		k.is("declare with another kind", err, broker.ErrRejected)
		if err != nil && !strings.Contains(err.Error(), directExchange) {
			k.Errorf("%q does not name %q", err, directExchange)
		}
		q := k.queue("q") // needs a live session
		k.send(message(q, "m"))
		k.expectLeft(q, "m")
	})

	a.test("what was declared before the refused thing stays", func(k *kit) {
		q := k.name("q")
		err := k.s.Declare(k.ctx, broker.Topology{
			Queues:   []broker.QueueSpec{{Name: q}},
			Bindings: []broker.Binding{{Queue: q, Exchange: k.name("no-exchange"), Key: "key"}},
		})
		if err == nil {
			k.Error("a binding to a missing exchange was declared")
		}
		k.send(message(q, "m"))
		k.expectLeft(q, "m")
	})

	a.test("an unknown type of queue is unsupported and the session lives", func(k *kit) {
		odd := broker.QueueSpec{Name: k.name("odd"), Type: "no-such-type"}
		err := k.s.Declare(k.ctx, broker.Topology{Queues: []broker.QueueSpec{odd}})
		k.is("declare", err, errors.ErrUnsupported)
		q := k.queue("q")
		k.send(message(q, "m"))
		k.expectLeft(q, "m")
	})

	a.test("a missing queue is gone for every method and the session lives", func(k *kit) {
		missing := k.name("missing")
		_, err := k.s.Consume(k.ctx, broker.ConsumeOptions{Queue: missing, Prefetch: 1})
		k.is("Consume", err, broker.ErrQueueGone)
		_, err = k.s.TryGet(k.ctx, missing, 1)
		k.is("TryGet", err, broker.ErrQueueGone)
		_, err = k.s.Inspect(k.ctx, missing)
		k.is("Inspect", err, broker.ErrQueueGone)
		_, err = k.s.Purge(k.ctx, missing)
		k.is("Purge", err, broker.ErrQueueGone)
		k.ok("Delete", k.s.Delete(k.ctx, missing))

		q := k.queue("q")
		k.send(message(q, "m"))
		k.expectLeft(q, "m")
	})

	a.test("a deleted queue takes its messages and bindings along", func(k *kit) {
		q, other, key, both := k.queue("q"), k.queue("other"), k.name("key"), k.name("both")
		k.bind(key, q)
		k.bind(both, q, other)
		k.send(message(q, "old"))
		k.must("delete", k.s.Delete(k.ctx, q))
		k.ok("delete again", k.s.Delete(k.ctx, q))
		k.is("publish to the queue", k.publish(k.s, message(q, "m"))[0], broker.ErrUnroutable)

		k.queue("q") // the same name again: a new queue
		m := message(key, "to the key")
		m.Exchange = directExchange
		k.is("publish to the key", k.publish(k.s, m)[0], broker.ErrUnroutable)
		m = message(both, "to both")
		m.Exchange = directExchange
		k.send(m)
		k.expectLeft(q)
		k.expectLeft(other, "to both")
	})

	a.test("deletion ends the consumers of the queue and nothing else", func(k *kit) {
		q, other := k.queue("q"), k.queue("other")
		s2 := k.open()
		k.send(message(q, "held"))
		held := k.take(k.s, q, 1)[0]
		consumers := []broker.Consumer{k.consume(k.s, q, 5), k.consume(k.s, q, 5), k.consume(s2, q, 5)}
		bystander := k.consume(k.s, other, 5)
		k.must("delete", k.open().Delete(k.ctx, q))
		for _, c := range consumers {
			k.expectEnd(c)
			k.is("Err of a consumer of a deleted queue", c.Err(), broker.ErrQueueGone)
			k.returns("Stop and Close of a dead consumer", func() { _, _ = c.Stop(k.ctx), c.Close(k.ctx) })
		}
		k.returns("ack of a message that was deleted", func() { _ = held.Ack() })
		k.send(message(other, "m"))
		if d := k.receive(bystander); d.ID != "m" {
			k.Errorf("got %q, want the message of the other queue", d.ID)
		}
		k.queue("q")
		k.send(message(q, "new"))
		if d := k.receive(k.consume(k.s, q, 5)); d.ID != "new" {
			k.Errorf("got %q, want the message of the new queue", d.ID)
		}
		for _, s := range []broker.Session{k.s, s2} {
			k.ok("Err of a session whose consumer's queue was deleted", s.Err())
		}
	})
}
