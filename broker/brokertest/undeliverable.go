package brokertest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// testRouteWhenDue is the part of the area "delay" that tests the routing of delayed messages, which happens when they
// are due.
func testRouteWhenDue(test func(name string, f func(k *kit))) {
	test("queues that are declared and bound after a delayed publish take it", func(k *kit) {
		var q string
		var want []broker.Message
		k.ahead(func(try string, due time.Time) {
			q, want = k.name("q"+try), nil
			key := k.name("key" + try)
			k.bind(key) // only the exchange
			byKey, byName := richMessage(key, "by key"), richMessage(q, "by name")
			byKey.Exchange = directExchange
			for _, m := range []broker.Message{byKey, byName} {
				m.NotBefore = due
				want = append(want, m)
			}
			k.sendAhead(due, want...) // a confirmation only means stored
			k.declare(broker.Topology{
				Queues:   []broker.QueueSpec{{Name: q}},
				Bindings: []broker.Binding{{Queue: q, Exchange: directExchange, Key: key}},
			})
		})
		c := k.consume(k.s, q, 2)
		got := make(map[string]broker.Delivery)
		for range want {
			d := k.receive(c)
			got[d.ID] = d
			k.ok("ack", d.Ack())
		}
		for _, m := range want {
			k.arrived(got[m.ID], m)
		}
		k.close(k.s)
		k.expectLeft(q)
	})

	test("what no queue takes when it is due is undeliverable, whole, and holds nobody up", func(k *kit) {
		const lost, good = 40, 10
		var q string
		var due time.Time
		var msgs []broker.Message
		var want map[string]broker.Message
		k.ahead(func(try string, at time.Time) {
			q, due, want = k.queue("q"+try), at, make(map[string]broker.Message)
			key := k.name("key" + try)
			k.bind(key, q)
			msgs = messages(q, good)
			for i := range msgs {
				if i%2 == 0 {
					msgs[i].Exchange, msgs[i].RoutingKey = directExchange, key
				}
			}
			var all []broker.Message
			for i := range lost {
				m := richMessage(k.name("nowhere"), k.prefix+try+fmt.Sprint(i))
				if i%2 == 0 {
					m.Exchange = directExchange
				}
				want[m.ID] = m
				if all = append(all, m); i%4 == 3 {
					all = append(all, msgs[i/4])
				}
			}
			for i := range all {
				all[i].NotBefore = due
			}
			k.sendAhead(due, all...)
		})
		k.expectLeft(q, ids(msgs)...)
		got := k.undelivered(slices.Collect(maps.Keys(want))...)
		if early := time.Until(due); early > 0 {
			k.Errorf("undeliverable %v early", early)
		}
		for id, m := range want {
			k.route(got[id], m.Exchange, m.RoutingKey)
			k.same(got[id].Message, m)
		}
	})

	test("what was delayed for a queue that is gone when it is due is undeliverable", func(k *kit) {
		var want []broker.Message
		k.ahead(func(try string, due time.Time) {
			q, key := k.queue("q"+try), k.name("key"+try)
			k.bind(key, q)
			retried := message(q, k.prefix+try+"retried")
			k.send(retried)
			d := k.take(k.s, q, 1)[0]
			byKey, byName := message(key, k.prefix+try+"by key"), message(q, k.prefix+try+"by name")
			byKey.Exchange = directExchange
			byKey.NotBefore, byName.NotBefore = due, due
			k.sendAhead(due, byKey, byName)
			k.must("retry", d.Retry(k.ctx, d.Forward(), time.Until(due)))
			k.must("delete", k.s.Delete(k.ctx, q))
			want = []broker.Message{retried, byKey, byName}
		})
		got := k.undelivered(ids(want)...)
		for _, m := range want { // the retried message goes back to its queue by name
			k.route(got[m.ID], m.Exchange, m.RoutingKey)
			k.same(got[m.ID].Message, m)
		}
	})

	test("the key that is gone for one queue is there for another", func(k *kit) {
		var stays string
		k.ahead(func(try string, due time.Time) {
			goes, key := k.queue("goes"+try), k.name("key"+try)
			stays = k.queue("stays" + try)
			k.bind(key, goes, stays)
			m := message(key, "m")
			m.Exchange, m.NotBefore = directExchange, due
			k.sendAhead(due, m)
			k.must("delete", k.s.Delete(k.ctx, goes))
		})
		k.expectLeft(stays, "m")
	})
}

// ahead calls f with a time in the future, before which f must return. If f returns too late, because the broker is
// slow, ahead calls it again with more time. f must use try in its names and ids.
func (k *kit) ahead(f func(try string, due time.Time)) {
	k.Helper()
	for wait, n := 500*time.Millisecond, 0; ; wait, n = wait*4, n+1 {
		due := time.Now().Add(wait)
		f(fmt.Sprintf("%d.", n), due)
		if time.Now().Before(due) {
			return
		}
		k.Logf("not done after %v: trying again with more time", wait)
	}
}

// sendAhead is like send, for messages with that due time. Messages that became due meanwhile may be unroutable.
func (k *kit) sendAhead(due time.Time, msgs ...broker.Message) {
	k.Helper()
	for i, err := range k.publish(k.s, msgs...) {
		if err != nil && (!errors.Is(err, broker.ErrUnroutable) || time.Now().Before(due)) {
			k.Fatalf("publish of message %q: %v", msgs[i].ID, err)
		}
	}
}

// undelivered waits until all messages with these ids were in the queue broker.Undeliverable. No other test may use the
// ids. All users of the server share that queue, so undelivered gives back messages of others.
func (k *kit) undelivered(ids ...string) map[string]broker.Delivery {
	k.Helper()
	missing := make(map[string]bool, len(ids))
	for _, id := range ids {
		missing[id] = true
	}
	got := make(map[string]broker.Delivery, len(ids))
	s := k.open()
	k.eventually(fmt.Sprintf("%d undeliverable messages", len(ids)), func() bool {
		var others []broker.Delivery // held until the end: a released message would come again and hide those behind it
		for {
			ds, err := s.TryGet(k.ctx, broker.Undeliverable, 20)
			if err != nil && !errors.Is(err, broker.ErrQueueGone) { // it may not exist before the first message comes
				k.Fatalf("TryGet: %v", err)
			}
			if len(ds) == 0 {
				break
			}
			for _, d := range ds {
				switch {
				case missing[d.ID]:
					delete(missing, d.ID)
					got[d.ID] = d
					k.ok("ack", d.Ack())
				case got[d.ID].Settler != nil:
					if !d.Redelivered { // if an ack was lost, the message comes again
						k.Errorf("%q is undeliverable twice", d.ID)
					}
					k.ok("ack", d.Ack())
				default:
					others = append(others, d)
				}
			}
		}
		for _, d := range others {
			k.ok("release", d.Release())
		}
		return len(missing) == 0
	})
	k.close(s)
	return got
}

// route checks the exchange and routing key of a message.
func (k *kit) route(d broker.Delivery, exchange, key string) {
	k.Helper()
	if d.Exchange != exchange || d.RoutingKey != key {
		k.Errorf("%q arrived from %q key %q, want %q key %q", d.ID, d.Exchange, d.RoutingKey, exchange, key)
	}
}
