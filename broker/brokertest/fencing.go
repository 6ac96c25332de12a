package brokertest

import "github.com/seed-416683c9/dispatcher/broker"

// testFencing checks that a late settlement does not settle the message for its next owner, whose work would be lost.
// The proof is that the message comes a third time after the second owner has ended without settling it.
func testFencing(a *area) {
	ends := []struct {
		name string
		end  func(k *kit, s broker.Session, c broker.Consumer) broker.Session // returns the session of the next owner
	}{
		{"a lost link", func(k *kit, s broker.Session, _ broker.Consumer) broker.Session {
			k.kill(s)
			return k.open()
		}},
		{"Close of the session", func(k *kit, s broker.Session, _ broker.Consumer) broker.Session {
			k.close(s)
			return k.open()
		}},
		{"Close of the consumer", func(k *kit, s broker.Session, c broker.Consumer) broker.Session {
			k.must("close the consumer", c.Close(k.ctx))
			return s
		}},
	}
	for _, e := range ends {
		for _, late := range settlements {
			a.test("a late "+late.name+" after "+e.name+" touches nothing", func(k *kit) {
				q, dead, suspects := k.family("q")
				k.send(messages(q, 3)...)
				c := k.consume(k.s, q, 3)
				old := k.receiveN(c, 3)
				s := e.end(k, k.s, c)
				next := k.receiveN(k.consume(s, q, 3), 3)
				for _, d := range old {
					k.wait("Lost", d.Lost())
					k.is("the late "+late.name, late.do(k, d), broker.ErrDeliveryLost)
				}
				for _, d := range next {
					if closed(d.Lost()) {
						k.Errorf("%q is lost for its owner", d.ID)
					}
				}
				k.ok("ack by the owner", next[0].Ack())
				k.close(s)
				k.expectLeft(q, next[1].ID, next[2].ID)
				k.expectLeft(dead)
				k.expectLeft(suspects)
			})
		}
	}

	// In AMQP the first delivery of each session has the same number.
	a.test("a late ack does not reach another message in the same place", func(k *kit) {
		q := k.queue("q")
		k.send(message(q, "first"))
		old := k.receive(k.consume(k.s, q, 1))
		k.kill(k.s)
		k.expectLeft(q, "first")

		s := k.open()
		k.ok("publish", k.publish(s, message(q, "second"))[0])
		k.receive(k.consume(s, q, 1))
		k.is("the late ack", old.Ack(), broker.ErrDeliveryLost)
		k.close(s)
		k.expectLeft(q, "second")
	})
}
