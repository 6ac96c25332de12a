package brokertest

import (
	"github.com/seed-416683c9/dispatcher/broker"
)

// testCrash checks the guarantees that the accounting of crashes relies on. A lost message is kept and marked, however
// often it is lost. A message that was given back or copied is not charged.
func testCrash(a *area) {
	for _, c := range copies {
		a.test("the past of a message ends with a "+c.name, func(k *kit) {
			if c.delayed {
				k.needDelay()
			}
			q, dead, suspects := k.family("q")
			k.send(message(q, "m"))
			for losses := range 2 {
				s := k.open()
				k.handedOut(k.receive(k.consume(s, q, 1)), losses)
				k.kill(s)
			}
			s := k.open()
			d := k.take(s, q, 1)[0]
			k.handedOut(d, 2)
			want := d.Forward()
			want.Headers["x-dispatcher-losses"] = int64(2)
			k.must(c.name, c.do(k, d, want))
			k.close(s) // flushes the ack of the original

			s = k.open()
			d = k.receive(k.consume(s, q+c.to, 1))
			k.copied(d, q+c.to, want)
			k.kill(s) // the copy's first loss
			s = k.open()
			d = k.take(s, q+c.to, 1)[0]
			k.handedOut(d, 1)
			k.ok("ack", d.Ack())
			k.close(s)
			for _, queue := range []string{q, dead, suspects} {
				k.expectLeft(queue)
			}
		})
	}

	a.test("what is given back after a loss is charged that one only", func(k *kit) {
		q := k.queue("q")
		k.send(message(q, "m"))
		s := k.open()
		k.receive(k.consume(s, q, 1))
		k.kill(s)

		s = k.open()
		c := k.consume(s, q, 1)
		for range 3 {
			d := k.receive(c)
			k.handedOut(d, 1)
			k.ok("release", d.Release())
		}
		k.buffered(c, 1)
		k.must("stop", c.Stop(k.ctx)) // gives back deliveries that were not received
		d := k.take(s, q, 1)[0]
		k.handedOut(d, 1)
		k.ok("release", d.Release())
		k.close(s)

		d = k.take(k.open(), q, 1)[0]
		k.handedOut(d, 1)
		k.ok("ack", d.Ack())
	})

	// Waiting messages are held by no session, so taking suspects one by one charges only the one that ran.
	a.test("a lost session is charged to what it has pulled and to nothing behind it", func(k *kit) {
		_, _, suspects := k.family("q")
		msgs := messages(suspects, 4)
		k.send(msgs...)
		lost := make(map[string]int)
		for range 3 {
			s := k.open()
			d := k.take(s, suspects, 1)[0] // not always the oldest: the broker may requeue that later
			k.handedOut(d, lost[d.ID])
			lost[d.ID]++
			k.kill(s)
			k.wait("Lost", d.Lost())
			k.is("ack of what was lost", d.Ack(), broker.ErrDeliveryLost)
		}
		for _, d := range k.take(k.open(), suspects, len(msgs)) {
			k.handedOut(d, lost[d.ID])
			if d.Redelivered && lost[d.ID] == 0 {
				k.Errorf("%q was held by nobody and is marked as Redelivered", d.ID)
			}
		}
	})

	// A broker with its own delivery limit drops messages that come too often, or moves them where nobody looks.
	a.test("what is lost again and again is still there", func(k *kit) {
		const losses = 20
		q, dead, suspects := k.family("q")
		queues := []string{q, dead, suspects}
		for _, queue := range queues {
			k.send(message(queue, "m"))
		}
		for i := range losses {
			s := k.open()
			for j, queue := range queues {
				var d broker.Delivery
				if (i+j)%4 == 0 {
					d = k.take(s, queue, 1)[0]
				} else {
					d = k.receive(k.consume(s, queue, 1))
				}
				k.handedOut(d, i)
			}
			if i%5 == 0 {
				k.close(s) // a clean close is charged too
			} else {
				k.kill(s)
			}
		}
		for _, queue := range queues {
			s := k.open()
			d := k.receive(k.consume(s, queue, 1))
			k.handedOut(d, losses)
			k.must("retry", d.Retry(k.ctx, d.Forward(), 0)) // it can still be settled
			k.close(s)
		}
		k.expectLeft(q, "m", "m") // its own and the retried suspect
		k.expectLeft(dead, "m")
		k.expectLeft(suspects)
	})
}
