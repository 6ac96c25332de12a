package brokertest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// methods are the methods of a session that take a context and return an error.
var methods = []struct {
	name string
	call func(ctx context.Context, s broker.Session, queue string) error
}{
	{"Declare", func(ctx context.Context, s broker.Session, q string) error {
		return s.Declare(ctx, broker.Topology{Queues: []broker.QueueSpec{{Name: q}}})
	}},
	{"Consume", func(ctx context.Context, s broker.Session, q string) error {
		_, err := s.Consume(ctx, broker.ConsumeOptions{Queue: q, Prefetch: 1})
		return err
	}},
	{"TryGet", func(ctx context.Context, s broker.Session, q string) error {
		_, err := s.TryGet(ctx, q, 1)
		return err
	}},
	{"Inspect", func(ctx context.Context, s broker.Session, q string) error {
		_, err := s.Inspect(ctx, q)
		return err
	}},
	{"Purge", func(ctx context.Context, s broker.Session, q string) error {
		_, err := s.Purge(ctx, q)
		return err
	}},
	{"Delete", func(ctx context.Context, s broker.Session, q string) error { return s.Delete(ctx, q) }},
}

func testSession(a *area) {
	a.test("a living session has no error and constant capabilities", func(k *kit) {
		caps := k.s.Capabilities()
		k.Logf("%+v", caps)
		k.ok("Err", k.s.Err())
		if closed(k.s.Done()) {
			k.Error("Done of a live session is closed")
		}
		k.close(k.s)
		for _, s := range []broker.Session{k.s, k.open()} {
			if got := s.Capabilities(); got != caps {
				k.Errorf("capabilities were %+v and are %+v", caps, got)
			}
		}
	})

	a.test("Close ends the session and its consumers, gives back and tells why", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 6)...)
		c := k.consume(k.s, q, 4)
		d := k.receive(c)
		k.buffered(c, 3)
		k.close(k.s)
		k.wait("the session's Done", k.s.Done())
		k.is("Err of the session", k.s.Err(), broker.ErrSessionLost)
		k.is("Err of the session", k.s.Err(), broker.ErrClosed)
		k.expectEnd(c)
		k.is("Err of the consumer", c.Err(), broker.ErrSessionLost)
		k.wait("Lost", d.Lost())
		for _, s := range settlements {
			k.is(s.name+" after Close", s.do(k, d), broker.ErrDeliveryLost)
		}
		k.expectLeft(q, "m0000", "m0001", "m0002", "m0003", "m0004", "m0005")
	})

	a.test("Close waits for what was handed over", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 100)...)
		for _, d := range k.receiveN(k.consume(k.s, q, 100), 100) {
			k.ok("ack", d.Ack())
		}
		msgs := messages(q, 500)
		o := newOutcomes(len(msgs))
		k.returns("Publish", func() { k.s.Publish(k.ctx, msgs, o.done) })
		k.close(k.s) // at once, with publishes in flight
		k.wait("the session's Done", k.s.Done())
		o.once(k)
		for _, err := range o.errs {
			k.must("publish before Close", err)
		}
		k.expectLeft(q, ids(msgs)...)
	})

	a.test("Close by many at once and again returns", func(k *kit) {
		k.parallel("Close", 4, func(int) { k.ok("close", k.s.Close(k.ctx)) })
		k.ok("close again", k.s.Close(k.ctx))
		k.is("Err", k.s.Err(), broker.ErrClosed)
	})

	a.test("Close with a context that has ended returns and the session is dead", func(k *kit) {
		q := k.queue("q")
		k.consume(k.s, q, 1)
		k.returns("Close", func() { _ = k.s.Close(ended()) })
		k.wait("the session's Done", k.s.Done())
		k.is("Err", k.s.Err(), broker.ErrSessionLost)
		k.is("Err", k.s.Err(), broker.ErrClosed)
	})

	a.test("the methods of a dead session say that it is lost", func(k *kit) {
		q := k.queue("q")
		killed, left := k.open(), k.open()
		consumers := map[broker.Session]broker.Consumer{left: k.consume(left, q, 2)}
		k.close(left)
		consumers[killed] = k.consume(killed, q, 2)
		k.kill(killed)
		for _, s := range []broker.Session{killed, left} {
			for _, m := range methods {
				k.returns(m.name, func() { k.is(m.name, m.call(k.ctx, s, q), broker.ErrSessionLost) })
			}
			c := consumers[s]
			k.returns("SetPrefetch", func() { k.is("SetPrefetch", c.SetPrefetch(k.ctx, 1), broker.ErrSessionLost) })
			for _, err := range k.publish(s, message(q, "a"), message(q, "b")) {
				k.is("publish", err, broker.ErrNotSent)
				k.oneOutcome(err)
			}
		}
		k.expectLeft(q)
	})

	a.test("the consumers of a lost session say so, every time", func(k *kit) {
		const rounds, each = 3, 100
		q := k.queue("q")
		for range rounds {
			s := k.open()
			var consumers []broker.Consumer
			for range each {
				consumers = append(consumers, k.consume(s, q, 1))
			}
			k.h.Kill(k.T, k.b)
			k.parallel("the end of the consumers", each, func(i int) {
				for range consumers[i].Deliveries() {
				}
				k.wait("the consumer to end", consumers[i].Done())
				k.is("Err of the consumer", consumers[i].Err(), broker.ErrSessionLost)
				k.is("Err of its session at that moment", s.Err(), broker.ErrSessionLost)
			})
			k.wait("the session to end", s.Done())
		}
	})

	a.test("methods whose context has ended return", func(k *kit) {
		q := k.queue("q")
		for _, m := range methods {
			s := k.open()
			k.returns(m.name, func() { _ = m.call(ended(), s, q) })
		}
		c := k.consume(k.open(), k.queue("other"), 2)
		k.returns("SetPrefetch", func() { _ = c.SetPrefetch(ended(), 1) })
		k.returns("Open", func() {
			if s, err := k.b.Open(ended()); err == nil {
				_ = s.Close(k.ctx)
			}
		})
	})

	a.test("the end of one session leaves the others alone", func(k *kit) {
		q := k.queue("q")
		s2 := k.open()
		c := k.consume(s2, q, 1)
		k.close(k.s)
		k.ok("publish through the other", k.publish(s2, message(q, "m"))[0])
		k.ok("ack", k.receive(c).Ack())
		k.ok("Err of the other", s2.Err())
	})

	a.test("everything at once loses nothing and tells the truth", func(k *kit) {
		q, dead := k.queueAndDead("q")
		busy := k.queue("busy")
		const publishers, each = 3, 100
		s2 := k.open()
		ctx, stop := context.WithCancel(k.ctx)
		defer stop()
		over := make(chan string, 10*publishers*each) // ids acked or dead-lettered
		var movers, settlers sync.WaitGroup
		for _, s := range []broker.Session{k.s, s2} {
			c := k.consume(s, q, 8)
			settlers.Go(func() { settleAll(k, c, over) })
			movers.Go(func() { // changes everything that can be changed
				for i := 0; ctx.Err() == nil; i++ {
					k.ok("SetPrefetch", c.SetPrefetch(k.ctx, 1+i%8))
					for _, m := range methods[:5] {
						if m.name != "Consume" {
							k.ok(m.name, m.call(k.ctx, s, busy))
						}
					}
					mine, err := s.Consume(k.ctx, broker.ConsumeOptions{Queue: busy, Prefetch: 2})
					k.ok("Consume", err)
					if err == nil {
						k.ok("Stop", mine.Stop(k.ctx))
						k.ok("Close", mine.Close(k.ctx))
					}
					_, _ = s.Err(), s.Capabilities()
				}
			})
		}
		outs := make([]*outcomes, 2*publishers)
		k.parallel("Publish", 2*publishers, func(i int) {
			s, to, n := []broker.Session{k.s, s2}[i%2], q, each
			if i >= publishers {
				to = busy
			}
			msgs := make([]broker.Message, n)
			for j := range msgs {
				msgs[j] = message(to, fmt.Sprintf("%d-%d", i, j))
			}
			outs[i] = newOutcomes(n)
			s.Publish(k.ctx, msgs, outs[i].done)
		})
		for _, o := range outs {
			k.wait("every outcome", o.all)
			for _, err := range o.errs {
				k.ok("publish", err)
			}
		}
		seen := make(map[string]bool)
		for range publishers * each {
			select {
			case id := <-over:
				if seen[id] {
					k.Errorf("%q ended twice", id)
				}
				seen[id] = true
			case <-k.ctx.Done():
				k.Fatalf("%d of %d messages ended", len(seen), publishers*each)
			}
		}
		stop()
		k.returns("the movers", movers.Wait)
		k.close(k.s)
		k.close(s2)
		k.returns("the settlers", settlers.Wait)
		k.expectLeft(q)
		for _, id := range k.left(dead) {
			if !seen[id] {
				k.Errorf("%q is a dead letter, but nobody made it one", id)
			}
		}
	})
}

// settleAll settles deliveries in all ways until the consumer ends, and sends the ids of acked and dead-lettered ones
// to over.
func settleAll(k *kit, c broker.Consumer, over chan<- string) {
	for d := range c.Deliveries() {
		var err error
		again, _ := d.Headers["again"].(bool)
		switch n := d.ID[len(d.ID)-1] - '0'; {
		case n < 2 && !d.Redelivered:
			err = d.Release()
		case n < 5 && !again:
			m := d.Forward()
			m.Headers["again"] = true
			var delay time.Duration
			if n == 4 && k.s.Capabilities().Delay {
				delay = time.Millisecond
			}
			err = d.Retry(k.ctx, m, delay)
		case n == 5:
			err = d.DeadLetter(k.ctx, d.Forward())
			over <- d.ID
		default:
			err = d.Ack()
			over <- d.ID
		}
		k.ok("settle "+d.ID, err)
	}
}
