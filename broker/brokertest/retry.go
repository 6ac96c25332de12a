package brokertest

import (
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// copies are the ways to end a delivery by publishing a copy of it.
var copies = []struct {
	name    string
	to      string // suffix of the queue that gets the copy
	delayed bool
	do      func(k *kit, d broker.Delivery, m broker.Message) error
}{
	{"retry", "", false, func(k *kit, d broker.Delivery, m broker.Message) error { return d.Retry(k.ctx, m, 0) }},
	{"delayed retry", "", true, func(k *kit, d broker.Delivery, m broker.Message) error {
		return d.Retry(k.ctx, m, 50*time.Millisecond)
	}},
	{"suspect", broker.SuspectsSuffix, false, func(k *kit, d broker.Delivery, m broker.Message) error {
		return d.Suspect(k.ctx, m)
	}},
	{"dead letter", broker.DeadSuffix, false, func(k *kit, d broker.Delivery, m broker.Message) error {
		return d.DeadLetter(k.ctx, m)
	}},
}

func testRetry(a *area) {
	a.test("a retry comes back to its own queue only, with what it was given", func(k *kit) {
		q, other, key := k.queue("q"), k.queue("other"), k.name("key")
		k.bind(key, q, other)
		m := richMessage(key, "m")
		m.Exchange = directExchange
		k.send(m)
		c := k.consume(k.s, q, 1)
		d := k.receive(c)
		again := d.Forward()
		again.Headers["attempt"] = int64(1)
		again.Body = []byte("a new body")
		k.must("retry", d.Retry(k.ctx, again, 0))

		d = k.receive(c)
		k.copied(d, q, again)
		elsewhere := d.Forward()
		elsewhere.Exchange, elsewhere.RoutingKey = "", other // ignored
		elsewhere.NotBefore = time.Now().Add(time.Hour)      // ignored
		k.must("retry", d.Retry(k.ctx, elsewhere, 0))
		k.ok("ack", k.receive(c).Ack())
		k.close(k.s)
		k.expectLeft(q)
		k.expectLeft(other, "m") // from the first publish
	})

	a.test("a failed retry leaves the delivery open", func(k *kit) {
		q, dead, suspects := k.family("q")
		k.send(messages(q, len(settlements))...)
		left := make(map[string][]string)
		for i, d := range k.take(k.s, q, len(settlements)) {
			if err := d.Retry(ended(), d.Forward(), 0); err == nil {
				k.Error("a retry whose context had ended succeeded")
			}
			s := settlements[i]
			k.ok("settling after it by "+s.name, s.do(k, d))
			left[q+s.to] = append(left[q+s.to], d.ID)
		}
		k.close(k.s)
		for _, queue := range []string{q, dead, suspects} {
			k.left(queue, left[queue]...) // or more: a failed retry may have written its copy
		}
	})

	a.test("a retry of a suspect returns to the queue it is a suspect of", func(k *kit) {
		q, _, suspects := k.family("q")
		delays := []time.Duration{0}
		if k.s.Capabilities().Delay {
			delays = append(delays, 200*time.Millisecond)
		}
		for i, delay := range delays {
			k.send(richMessage(suspects, fmt.Sprint("m", i)))
			d := k.take(k.s, suspects, 1)[0]
			again := d.Forward()
			again.Headers["attempt"] = int64(1)
			start := time.Now()
			k.must("retry", d.Retry(k.ctx, again, delay))
			c := k.consume(k.s, q, 1)
			d = k.receive(c)
			if took := time.Since(start); took < delay {
				k.Errorf("came after %v, want %v at least", took, delay)
			}
			k.copied(d, q, again)
			k.ok("ack", d.Ack())
			k.must("stop", c.Stop(k.ctx))
		}
		k.close(k.s)
		k.expectLeft(q)
		k.expectLeft(suspects)
	})

	a.test("a suspect whose queue is gone cannot be retried and stays open", func(k *kit) {
		q, dead, suspects := k.family("q")
		k.send(message(suspects, "m"))
		d := k.take(k.s, suspects, 1)[0]
		k.must("delete", k.s.Delete(k.ctx, q))
		for range 2 {
			err := d.Retry(k.ctx, d.Forward(), 0)
			k.is("retry to nowhere", err, broker.ErrUnroutable)
			k.oneOutcome(err)
		}
		if closed(d.Lost()) {
			k.Error("a retry that failed closed Lost")
		}
		k.must("dead-letter", d.DeadLetter(k.ctx, d.Forward()))
		k.close(k.s)
		k.expectLeft(suspects)
		k.expectLeft(dead, "m")
	})
}

// copied checks a delivery of a message that Retry, Suspect or DeadLetter has published. It must be complete, be routed
// by the queue's name, and have no past.
func (k *kit) copied(d broker.Delivery, queue string, want broker.Message) {
	k.Helper()
	k.same(d.Message, want)
	if d.Queue != queue || d.Exchange != "" || d.RoutingKey != queue {
		k.Errorf("copy %q: Queue %q, Exchange %q, RoutingKey %q, want %q, \"\" and the queue again",
			d.ID, d.Queue, d.Exchange, d.RoutingKey, queue)
	}
	if d.Redelivered || d.Losses != 0 {
		k.Errorf("copy %q: Redelivered %v, Losses %d, want false, 0", d.ID, d.Redelivered, d.Losses)
	}
}
