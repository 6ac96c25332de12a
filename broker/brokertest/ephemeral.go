package brokertest

import (
	"errors"

	"github.com/seed-416683c9/dispatcher/broker"
)

func testEphemeral(a *area) {
	ephemeral := func(q string) broker.Topology {
		return broker.Topology{Queues: []broker.QueueSpec{{Name: q, Ephemeral: true}}}
	}

	a.test("a broker without ephemeral queues says so", func(k *kit) {
		if k.s.Capabilities().Ephemeral {
			k.Skip("broker has ephemeral queues")
		}
		k.Log("broker has no ephemeral queues: the other tests of this area are skipped")
		k.is("declare", k.s.Declare(k.ctx, ephemeral(k.name("q"))), errors.ErrUnsupported)
	})

	test := func(name string, f func(k *kit)) {
		a.test(name, func(k *kit) {
			if !k.s.Capabilities().Ephemeral {
				k.Skip("broker has no ephemeral queues")
			}
			f(k)
		})
	}

	test("everybody may publish to it and its session consumes it", func(k *kit) {
		q, key := k.name("q"), k.name("key")
		k.declare(ephemeral(q))
		k.declare(ephemeral(q)) // succeeds again and changes nothing
		k.bind(key, q)
		m := message(key, "by key")
		m.Exchange = directExchange
		for _, err := range k.publish(k.open(), message(q, "by name"), m) {
			k.must("publish from another session", err)
		}
		c := k.consume(k.s, q, 2)
		k.expectIDs(k.receiveN(c, 2), "by name", "by key")
	})

	for _, e := range []struct {
		name string
		end  func(k *kit, s broker.Session)
	}{
		{"Close", func(k *kit, s broker.Session) { k.close(s) }},
		{"a lost link", func(k *kit, s broker.Session) { k.kill(s) }},
	} {
		test("its name is a lock until the session ends by "+e.name, func(k *kit) {
			q := k.name("q")
			holder := k.open()
			k.must("declare", holder.Declare(k.ctx, ephemeral(q)))
			k.ok("publish", k.publish(holder, message(q, "old"))[0])
			for range 2 {
				k.is("declare by another", k.s.Declare(k.ctx, ephemeral(q)), broker.ErrLocked)
			}
			_, err := k.s.Consume(k.ctx, broker.ConsumeOptions{Queue: q, Prefetch: 1})
			k.is("consume by another", err, broker.ErrLocked)

			e.end(k, holder)
			next := k.open() // k.s lost its link too
			k.eventually("the name to be free", func() bool {
				err := next.Declare(k.ctx, ephemeral(q))
				if err != nil {
					k.is("declare by the next", err, broker.ErrLocked)
				}
				return err == nil
			})
			k.ok("publish", k.publish(next, message(q, "new"))[0])
			d := k.receive(k.consume(next, q, 1))
			k.expectIDs([]broker.Delivery{d}, "new") // the old message went with its queue
		})
	}

	test("it dies with its session, messages, bindings and all", func(k *kit) {
		q, key := k.name("q"), k.name("key")
		k.declare(ephemeral(q))
		k.bind(key, q)
		k.send(message(q, "m"))
		k.close(k.s)
		s := k.open()
		k.eventually("the queue to be gone", func() bool {
			err := k.publish(s, message(q, "m"))[0]
			return errors.Is(err, broker.ErrUnroutable)
		})
		m := message(key, "by key")
		m.Exchange = directExchange
		k.is("publish to its key", k.publish(s, m)[0], broker.ErrUnroutable)
		_, err := s.Inspect(k.ctx, q)
		k.is("inspect", err, broker.ErrQueueGone)
	})

	test("it can be deleted before its session ends", func(k *kit) {
		q := k.name("q")
		k.declare(ephemeral(q))
		c := k.consume(k.s, q, 1)
		k.must("delete", k.s.Delete(k.ctx, q))
		k.expectEnd(c)
		k.is("Err of its consumer", c.Err(), broker.ErrQueueGone)
		k.must("declare by another", k.open().Declare(k.ctx, ephemeral(q)))
	})

	test("a durable queue of that name is refused, and lives on", func(k *kit) {
		q := k.queue("q")
		k.send(message(q, "m"))
		k.is("declare as ephemeral", k.s.Declare(k.ctx, ephemeral(q)), broker.ErrRejected)
		k.close(k.s)
		k.expectLeft(q, "m")
	})
}
