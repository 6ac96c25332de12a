package brokertest

import (
	"github.com/seed-416683c9/dispatcher/broker"
)

func testSuspect(a *area) {
	a.test("a suspect goes to the suspects of its queue only, whole", func(k *kit) {
		q, dead, suspects := k.family("q")
		other, key := k.queue("other"), k.name("key")
		k.bind(key, q, other)
		m := richMessage(key, "m")
		m.Exchange = directExchange
		k.send(m)
		d := k.receive(k.consume(k.s, q, 1))
		copied := d.Forward()
		copied.Headers["losses"] = int64(2)
		copied.Exchange, copied.RoutingKey = "", other // ignored
		k.must("suspect", d.Suspect(k.ctx, copied))

		d = k.take(k.s, suspects, 1)[0]
		k.copied(d, suspects, copied)
		k.ok("ack", d.Ack())
		k.close(k.s)
		for _, queue := range []string{q, dead, suspects} {
			k.expectLeft(queue)
		}
		k.expectLeft(other, "m") // from the publish
	})

	a.test("without a queue of suspects the delivery stays open until there is one", func(k *kit) {
		q, dead := k.queueAndDead("q")
		k.send(messages(q, 4)...)
		ds := k.receiveN(k.consume(k.s, q, 4), 4)
		for range 2 {
			for _, d := range ds {
				err := d.Suspect(k.ctx, d.Forward())
				k.is("suspect to nowhere", err, broker.ErrUnroutable)
				k.oneOutcome(err)
				if closed(d.Lost()) {
					k.Error("a suspect that failed closed Lost")
				}
			}
		}
		k.ok("release", ds[0].Release())
		k.ok("ack", ds[1].Ack())
		k.ok("dead-letter", ds[2].DeadLetter(k.ctx, ds[2].Forward()))
		k.declare(broker.Topology{Queues: []broker.QueueSpec{{Name: q + broker.SuspectsSuffix}}})
		k.ok("suspect", ds[3].Suspect(k.ctx, ds[3].Forward()))
		k.is("ack afterwards", ds[3].Ack(), broker.ErrSettled)
		k.close(k.s)
		k.expectLeft(q, "m0000")
		k.expectLeft(dead, "m0002")
		k.expectLeft(q+broker.SuspectsSuffix, "m0003")
	})

	a.test("a suspect whose context has ended leaves the delivery open", func(k *kit) {
		q, _, suspects := k.family("q")
		k.send(message(q, "m"))
		d := k.receive(k.consume(k.s, q, 1))
		if err := d.Suspect(ended(), d.Forward()); err == nil {
			k.Fatal("a suspect whose context had ended succeeded")
		}
		k.must("suspect", d.Suspect(k.ctx, d.Forward()))
		k.close(k.s)
		k.left(suspects, "m") // twice if the failed suspect was written
		k.expectLeft(q)
	})

	a.test("a suspect of a suspect goes to the back of the same queue", func(k *kit) {
		_, _, suspects := k.family("q")
		// A broker that appends the suffix to the name of the queue it came from would send it here.
		wrong := k.queue("q" + broker.SuspectsSuffix + broker.SuspectsSuffix)
		k.send(messages(suspects, 3)...)
		d := k.take(k.s, suspects, 1)[0]
		k.must("suspect", d.Suspect(k.ctx, d.Forward()))
		ds := k.take(k.s, suspects, 3)
		k.expectIDs(ds, "m0001", "m0002", "m0000")
		for _, d := range ds {
			k.ok("ack", d.Ack())
		}
		k.close(k.s)
		k.expectLeft(suspects)
		k.expectLeft(wrong)
	})

	a.test("a dead letter of a suspect is one of the queue it is a suspect of", func(k *kit) {
		q, dead, suspects := k.family("q")
		wrong := k.queue("q" + broker.SuspectsSuffix + broker.DeadSuffix)
		k.send(richMessage(suspects, "m"))
		d := k.take(k.s, suspects, 1)[0]
		letter := d.Forward()
		letter.Headers["x-reason"] = "crash_loop"
		k.must("dead-letter", d.DeadLetter(k.ctx, letter))
		d = k.take(k.s, dead, 1)[0]
		k.copied(d, dead, letter)
		k.ok("ack", d.Ack())
		k.close(k.s)
		for _, queue := range []string{q, dead, suspects, wrong} {
			k.expectLeft(queue)
		}
	})

	a.test("a suspect without a dead letter queue stays open", func(k *kit) {
		q, dead, suspects := k.family("q")
		k.must("delete", k.s.Delete(k.ctx, dead))
		k.send(message(suspects, "m"))
		d := k.take(k.s, suspects, 1)[0]
		k.is("dead-letter to nowhere", d.DeadLetter(k.ctx, d.Forward()), broker.ErrUnroutable)
		k.must("release", d.Release())
		k.close(k.s)
		k.expectLeft(suspects, "m")
		k.expectLeft(q)
	})

	a.test("a message that is suspected and retried in turn stays one and whole", func(k *kit) {
		q, _, suspects := k.family("q")
		want := richMessage(q, "m")
		k.send(want)
		for range 5 {
			d := k.take(k.s, q, 1)[0]
			k.must("suspect", d.Suspect(k.ctx, d.Forward()))
			d = k.take(k.s, suspects, 1)[0]
			k.must("retry", d.Retry(k.ctx, d.Forward(), 0))
		}
		d := k.take(k.s, q, 1)[0]
		k.copied(d, q, want)
		k.ok("ack", d.Ack())
		k.close(k.s)
		k.expectLeft(q)
		k.expectLeft(suspects)
	})
}
