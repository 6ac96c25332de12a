package brokertest

import "github.com/seed-416683c9/dispatcher/broker"

func testDeadLetter(a *area) {
	a.test("a dead letter keeps its content and leaves its queue", func(k *kit) {
		q, dead := k.queueAndDead("q")
		other, key := k.queue("other"), k.name("key")
		k.bind(key, q, other)
		m := richMessage(key, "m")
		m.Exchange = directExchange
		k.send(m)
		d := k.receive(k.consume(k.s, q, 1))
		letter := d.Forward()
		letter.Headers["x-reason"] = "malformed"
		k.must("dead-letter", d.DeadLetter(k.ctx, letter))

		d = k.receive(k.consume(k.s, dead, 1))
		k.same(d.Message, letter)
		if d.Queue != dead || d.Losses != 0 {
			k.Errorf("dead letter: Queue %q, Losses %d, want %q, 0", d.Queue, d.Losses, dead)
		}
		k.ok("ack", d.Ack())
		k.close(k.s)
		k.expectLeft(q)
		k.expectLeft(dead)
		k.expectLeft(other, "m") // from the publish, not from the dead letter
	})

	a.test("a dead letter goes to no other queue than its own", func(k *kit) {
		q, dead := k.queueAndDead("q")
		other := k.queue("other")
		k.send(message(q, "m"))
		d := k.receive(k.consume(k.s, q, 1))
		letter := d.Forward()
		letter.Exchange, letter.RoutingKey = "", other // ignored
		k.must("dead-letter", d.DeadLetter(k.ctx, letter))
		k.close(k.s)
		k.expectLeft(dead, "m")
		k.expectLeft(other)
		k.expectLeft(q)
	})

	a.test("without a dead letter queue the delivery stays open until there is one", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 3)...)
		ds := k.receiveN(k.consume(k.s, q, 3), 3)
		for range 2 {
			for _, d := range ds {
				err := d.DeadLetter(k.ctx, d.Forward())
				k.is("dead-letter to nowhere", err, broker.ErrUnroutable)
				k.oneOutcome(err)
				if closed(d.Lost()) {
					k.Error("a dead letter that failed closed Lost")
				}
			}
		}
		k.ok("release", ds[0].Release())
		k.ok("ack", ds[1].Ack())
		k.declare(broker.Topology{Queues: []broker.QueueSpec{{Name: q + broker.DeadSuffix}}})
		k.ok("dead-letter", ds[2].DeadLetter(k.ctx, ds[2].Forward()))
		k.is("ack afterwards", ds[2].Ack(), broker.ErrSettled)
		k.close(k.s)
		k.expectLeft(q, "m0000")
		k.expectLeft(q+broker.DeadSuffix, "m0002")
	})

	a.test("a dead letter whose context has ended leaves the delivery open", func(k *kit) {
		q, dead := k.queueAndDead("q")
		k.send(message(q, "m"))
		d := k.receive(k.consume(k.s, q, 1))
		if err := d.DeadLetter(ended(), d.Forward()); err == nil {
			k.Fatal("a dead letter whose context had ended succeeded")
		}
		k.must("dead-letter", d.DeadLetter(k.ctx, d.Forward()))
		k.close(k.s)
		k.left(dead, "m") // twice if the failed dead letter was written
		k.expectLeft(q)
	})

	a.test("a dead letter can be retried and dies again from its own queue", func(k *kit) {
		_, dead := k.queueAndDead("q")
		k.send(message(dead, "m"))
		c := k.consume(k.s, dead, 1)
		d := k.receive(c)
		k.must("retry", d.Retry(k.ctx, d.Forward(), 0))
		d = k.receive(c)
		k.is("dead-letter of a dead letter", d.DeadLetter(k.ctx, d.Forward()), broker.ErrUnroutable)
		k.ok("ack", d.Ack())
	})
}
