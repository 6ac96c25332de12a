package brokertest

import (
	"fmt"

	"github.com/seed-416683c9/dispatcher/broker"
)

func testInspect(a *area) {
	a.test("a paused consumer is not counted", func(k *kit) {
		q := k.queue("q")
		k.send(message(q, "m"))
		c := k.consume(k.s, q, 2)
		d := k.receive(c)
		k.counts(q, broker.QueueInfo{Unsettled: 1, Consumers: 1})
		k.must("pause", c.SetPrefetch(k.ctx, 0))
		k.counts(q, broker.QueueInfo{Unsettled: 1})
		k.must("go on", c.SetPrefetch(k.ctx, 2))
		k.counts(q, broker.QueueInfo{Unsettled: 1, Consumers: 1})
		k.must("ack", d.Ack())
	})

	a.test("a queue is counted", func(k *kit) {
		q := k.queue("q")
		k.counts(q, broker.QueueInfo{})
		k.send(messages(q, 7)...)
		k.counts(q, broker.QueueInfo{Ready: 7})
		c := k.consume(k.s, q, 3)
		k.buffered(c, 3) // handed out, but not received
		k.counts(q, broker.QueueInfo{Ready: 4, Unsettled: 3, Consumers: 1})
		other := k.consume(k.open(), q, 1)
		k.receive(other)
		k.counts(q, broker.QueueInfo{Ready: 3, Unsettled: 4, Consumers: 2})
		k.ok("ack", k.receive(c).Ack())
		k.counts(q, broker.QueueInfo{Ready: 2, Unsettled: 4, Consumers: 2})
		k.must("stop", c.Stop(k.ctx))
		k.counts(q, broker.QueueInfo{Ready: 5, Unsettled: 1, Consumers: 1})
		k.must("close", other.Close(k.ctx))
		k.counts(q, broker.QueueInfo{Ready: 6})
		k.take(k.s, q, 2)
		k.counts(q, broker.QueueInfo{Ready: 4, Unsettled: 2})
	})

	a.test("Purge removes what is ready and nothing else", func(k *kit) {
		q := k.queue("q")
		n, err := k.s.Purge(k.ctx, q)
		if n != 0 || err != nil {
			k.Errorf("Purge of an empty queue: %d, %v", n, err)
		}
		k.send(messages(q, 5)...)
		held := k.take(k.s, q, 2)
		n, err = k.s.Purge(k.ctx, q)
		if n != 3 || err != nil {
			k.Errorf("Purge with 3 ready and 2 handed out: %d, %v", n, err)
		}
		for _, d := range held {
			if closed(d.Lost()) {
				k.Errorf("%q was lost by Purge", d.ID)
			}
		}
		k.ok("ack", held[0].Ack())
		k.ok("release", held[1].Release())
		k.close(k.s)
		k.expectLeft(q, held[1].ID)
	})
}

// counts waits until Inspect returns want. It ignores numbers that Inspect does not know and returns as -1.
func (k *kit) counts(queue string, want broker.QueueInfo) {
	k.Helper()
	var got broker.QueueInfo
	defer func() {
		if got != want {
			k.Logf("Inspect: %+v, want %+v", got, want)
		}
	}()
	k.eventually(fmt.Sprintf("%+v", want), func() bool {
		var err error
		got, err = k.s.Inspect(k.ctx, queue)
		k.must("Inspect", err)
		told := want
		for _, n := range []struct{ got, want *int }{
			{&got.Ready, &told.Ready}, {&got.Unsettled, &told.Unsettled}, {&got.Consumers, &told.Consumers},
		} {
			if *n.got == -1 {
				*n.want = -1
			}
		}
		return got == told
	})
}
