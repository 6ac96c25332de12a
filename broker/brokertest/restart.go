package brokertest

import (
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

func testRestart(a *area) {
	a.test("confirmed messages survive a restart, with their queues and bindings", func(k *kit) {
		q, key := k.queue("q"), k.name("key")
		k.bind(key, q)
		want := richMessage(q, "rich")
		k.send(messages(q, 200)...)
		k.send(want)
		c := k.consume(k.s, q, 10)
		k.receiveN(c, 10)
		k.restart()
		k.expectEnd(c)
		k.is("Err of the session", k.s.Err(), broker.ErrSessionLost)

		m := message(key, "by key")
		m.Exchange = directExchange
		s := k.reopen()
		k.ok("publish to the binding", k.publish(s, m)[0])
		k.expectLeft(q, append(ids(messages(q, 200)), "rich", "by key")...)
	})

	a.test("delayed messages survive a restart", func(k *kit) {
		k.needDelay()
		q := k.queue("q")
		k.send(message(q, "m"))
		d := k.receive(k.consume(k.s, q, 1))
		const delay = 500 * time.Millisecond
		start := time.Now()
		k.must("retry", d.Retry(k.ctx, d.Forward(), delay))
		published := message(q, "published")
		published.NotBefore = start.Add(delay)
		k.send(published)
		k.close(k.s) // flushes the ack of the original
		k.restart()
		k.reopen()
		k.expectLeft(q, "m", "published")
		if took := time.Since(start); took < delay {
			k.Errorf("a delay of %v took %v", delay, took)
		}
	})
}

// restart restarts the broker and waits until the test's session has ended.
func (k *kit) restart() {
	k.Helper()
	k.h.Restart(k.T, k.b)
	k.wait("the session to end", k.s.Done())
}

// reopen opens a session as soon as the restarted broker accepts one.
func (k *kit) reopen() broker.Session {
	k.Helper()
	k.eventually("a session with the restarted broker", func() bool {
		s, err := k.b.Open(k.ctx)
		if err == nil {
			_ = s.Close(k.ctx)
		}
		return err == nil
	})
	return k.open()
}
