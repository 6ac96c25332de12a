package brokertest

import (
	"errors"

	"github.com/seed-416683c9/dispatcher/broker"
)

func testFanout(a *area) {
	fanout := func(k *kit) broker.Topology {
		return broker.Topology{Exchanges: []broker.Exchange{{Name: k.prefix + "fanout", Kind: broker.Fanout}}}
	}

	a.test("a broker without fanout says so", func(k *kit) {
		if k.s.Capabilities().Fanout {
			k.Skip("broker has fanout")
		}
		k.Log("broker has no fanout: the other tests of this area are skipped")
		k.is("declare", k.s.Declare(k.ctx, fanout(k)), errors.ErrUnsupported)
	})

	a.test("every bound queue gets a message once, whatever the keys", func(k *kit) {
		if !k.s.Capabilities().Fanout {
			k.Skip("broker has no fanout")
		}
		t := fanout(k)
		exchange := t.Exchanges[0].Name
		k.declare(t)
		m := message("some key", "m")
		m.Exchange = exchange
		k.is("publish without bindings", k.publish(k.s, m)[0], broker.ErrUnroutable)

		q1, q2, q3 := k.queue("q1"), k.queue("q2"), k.queue("q3")
		t.Bindings = []broker.Binding{
			{Queue: q1, Exchange: exchange, Key: "some key"},
			{Queue: q2, Exchange: exchange, Key: "a"},
			{Queue: q2, Exchange: exchange, Key: "b"}, // two bindings, one queue
			{Queue: q2, Exchange: exchange},
		}
		k.declare(t)
		k.declare(t)
		k.send(m)
		k.expectLeft(q1, "m")
		k.expectLeft(q2, "m")
		k.expectLeft(q3)
	})

	a.test("a retry or dead letter comes to its own queue only", func(k *kit) {
		if !k.s.Capabilities().Fanout {
			k.Skip("broker has no fanout")
		}
		t := fanout(k)
		exchange := t.Exchanges[0].Name
		q, dead := k.queueAndDead("q")
		other := k.queue("other")
		for _, name := range []string{q, dead, other} {
			t.Bindings = append(t.Bindings, broker.Binding{Queue: name, Exchange: exchange})
		}
		k.declare(t)
		m := message("", "m")
		m.Exchange = exchange
		k.send(m)
		c := k.consume(k.s, q, 1)
		d := k.receive(c)
		k.must("retry", d.Retry(k.ctx, d.Forward(), 0))
		d = k.receive(c)
		k.must("dead-letter", d.DeadLetter(k.ctx, d.Forward()))
		k.close(k.s)
		k.expectLeft(other, "m")
		k.expectLeft(dead, "m", "m")
		k.expectLeft(q)
	})
}
