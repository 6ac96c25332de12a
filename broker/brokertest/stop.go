package brokertest

import (
	"fmt"
	"sync"

	"github.com/seed-416683c9/dispatcher/broker"
)

func testStop(a *area) {
	a.test("Stop gives back what nobody received and leaves the rest to be settled", func(k *kit) {
		q, dead, suspects := k.family("q")
		n := len(settlements)
		msgs := messages(q, n+6)
		k.send(msgs...)
		c := k.consume(k.s, q, n+6)
		ds := k.receiveN(c, n)
		k.buffered(c, 6)
		k.must("stop", c.Stop(k.ctx))
		k.expectIDs(k.rest(c))
		k.ok("Err after Stop", c.Err())

		next := k.consume(k.open(), q, n+6)
		got := k.receiveN(next, 6)
		for _, d := range got {
			if d.Losses != 0 {
				k.Errorf("%q was given back by Stop and has %d losses", d.ID, d.Losses)
			}
		}
		k.expectIDs(got, ids(msgs)[n:]...)
		for i, d := range ds {
			if closed(d.Lost()) {
				k.Errorf("%q was lost by Stop", d.ID)
			}
			k.ok("settle after Stop by "+settlements[i].name, settlements[i].do(k, d))
		}
		for _, d := range got {
			k.ok("ack", d.Ack())
		}
		for range 2 { // the released and the retried one
			k.ok("ack", k.receive(next).Ack())
		}
		k.close(k.s)
		k.must("stop", next.Stop(k.ctx))
		k.expectLeft(q)
		k.expectLeft(dead, msgs[3].ID)
		k.expectLeft(suspects, msgs[4].ID)
	})

	a.test("Stop against a busy receiver neither loses nor doubles a message", func(k *kit) {
		q := k.queue("q")
		for round := range 10 {
			msgs := make([]broker.Message, 30)
			for i := range msgs {
				msgs[i] = message(q, fmt.Sprintf("%d-%d", round, i))
			}
			s := k.open()
			c := k.consume(s, q, 10)
			var received []string
			var wg sync.WaitGroup
			begun := make(chan struct{})
			wg.Go(func() {
				for d := range c.Deliveries() {
					if received = append(received, d.ID); len(received) == 5 {
						close(begun)
					}
					k.ok("ack", d.Ack())
				}
			})
			k.send(msgs...)
			k.wait("the first messages", begun)
			k.must("stop", c.Stop(k.ctx))
			k.returns("the range over Deliveries", wg.Wait)
			k.close(s)

			gone := make(map[string]bool)
			for _, id := range received {
				if gone[id] {
					k.Errorf("%q was received twice", id)
				}
				gone[id] = true
			}
			var rest []string
			for _, m := range msgs {
				if !gone[m.ID] {
					rest = append(rest, m.ID)
				}
			}
			k.expectLeft(q, rest...)
		}
	})

	a.test("Close gives back what is not settled and makes it unsettleable", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 3)...)
		c := k.consume(k.s, q, 3)
		ds := k.receiveN(c, 3)
		k.ok("ack", ds[0].Ack())
		k.must("close", c.Close(k.ctx))
		k.expectEnd(c)
		k.ok("Err after Close", c.Err())
		for _, d := range ds[1:] {
			k.wait("Lost", d.Lost())
			for _, s := range settlements {
				k.is(s.name+" after Close", s.do(k, d), broker.ErrDeliveryLost)
			}
		}
		k.is("ack of what was settled", ds[0].Ack(), broker.ErrSettled)

		again := k.receiveN(k.consume(k.s, q, 3), 2) // the session is live
		for _, d := range again {
			k.handedOut(d, 1)
			k.ok("ack", d.Ack())
		}
		k.close(k.s)
		k.expectLeft(q)
	})

	a.test("Close flushes the acks before it", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 100)...)
		c := k.consume(k.s, q, 100)
		for _, d := range k.receiveN(c, 100) {
			k.ok("ack", d.Ack())
		}
		k.must("close", c.Close(k.ctx))
		k.expectLeft(q)
	})

	a.test("Close after Stop gives back what was received", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 2)...)
		c := k.consume(k.s, q, 2)
		ds := k.receiveN(c, 2)
		for range 2 {
			k.must("stop", c.Stop(k.ctx))
		}
		k.ok("ack between Stop and Close", ds[0].Ack())
		for range 2 {
			k.must("close", c.Close(k.ctx))
		}
		k.wait("Lost", ds[1].Lost())
		k.is("ack after Close", ds[1].Ack(), broker.ErrDeliveryLost)
		k.ok("Err", c.Err())
		d := k.receive(k.consume(k.s, q, 2))
		k.expectIDs([]broker.Delivery{d}, ds[1].ID)
		k.handedOut(d, 1)
	})

	a.test("Stop and Close in any number and at once return", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 10)...)
		c := k.consume(k.s, q, 4)
		k.receive(c)
		k.parallel("Stop and Close", 8, func(i int) {
			if i%2 == 0 {
				_ = c.Stop(k.ctx) // may fail on a closed consumer
			} else {
				k.ok("close", c.Close(k.ctx))
			}
		})
		k.returns("Stop after Close", func() { _ = c.Stop(k.ctx) })
		k.expectEnd(c)
		k.ok("Err", c.Err())
		k.receiveN(k.consume(k.s, q, 10), 10)
	})

	a.test("the consumer ends even if the context of Stop or Close has", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 3)...)
		for _, stop := range []func(c broker.Consumer) error{
			func(c broker.Consumer) error { return c.Stop(ended()) },
			func(c broker.Consumer) error { return c.Close(ended()) },
		} {
			s := k.open()
			c := k.consume(s, q, 3)
			k.buffered(c, 3)
			k.returns("Stop or Close", func() { _ = stop(c) })
			k.expectIDs(k.rest(c))
			k.close(s)
		}
		k.receiveN(k.consume(k.s, q, 3), 3)
	})
}

// buffered waits until n deliveries are in the channel of c, handed out and not received.
func (k *kit) buffered(c broker.Consumer, n int) {
	k.Helper()
	k.eventually(fmt.Sprintf("%d deliveries in the channel", n), func() bool { return len(c.Deliveries()) == n })
}

// handedOut checks Redelivered and Losses of d after n consumers or sessions that held it have ended. A broker that
// cannot count exactly may count fewer losses (a classic queue of RabbitMQ counts nothing), but not more.
func (k *kit) handedOut(d broker.Delivery, n int) {
	k.Helper()
	if n > 0 && !d.Redelivered {
		k.Errorf("%q was handed out before and is not marked as Redelivered", d.ID)
	}
	if d.Losses < 0 || d.Losses > n || d.Losses < n && k.s.Capabilities().ExactLosses {
		k.Errorf("%q was lost %d times and Losses is %d", d.ID, n, d.Losses)
	}
}
