package brokertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/seed-416683c9/dispatcher/broker"
)

func testLoss(a *area) {
	a.test("a lost link ends the session and all that came from it", func(k *kit) {
		q, _, _ := k.family("q")
		k.send(messages(q, 5)...)
		c := k.consume(k.s, q, 4)
		ds := k.receiveN(c, 3)
		ds = append(ds, k.take(k.s, q, 1)...)
		k.ok("Err of the living session", k.s.Err())
		k.kill(k.s)

		k.is("Err of the session", k.s.Err(), broker.ErrSessionLost)
		if errors.Is(k.s.Err(), broker.ErrClosed) {
			k.Errorf("Err of a session that nobody closed: %v", k.s.Err())
		}
		k.expectEnd(c)
		k.is("Err of the consumer", c.Err(), broker.ErrSessionLost)
		for _, d := range ds {
			k.wait("Lost", d.Lost())
			for _, s := range settlements {
				k.is(s.name+" of a lost delivery", s.do(k, d), broker.ErrDeliveryLost)
			}
		}
		k.returns("Stop and Close of the consumer and the session", func() {
			_, _, _ = c.Stop(k.ctx), c.Close(k.ctx), k.s.Close(k.ctx)
		})
		k.is("Err of the session after Close", k.s.Err(), broker.ErrSessionLost)
		k.expectLeft(q, "m0000", "m0001", "m0002", "m0003", "m0004")
	})

	a.test("unsettled messages come to the next session, each once", func(k *kit) {
		q := k.queue("q")
		msgs := messages(q, 40)
		k.send(msgs...)
		held := make(map[string]bool)
		for _, d := range append(k.receiveN(k.consume(k.s, q, 20), 10), k.take(k.s, q, 5)...) {
			held[d.ID] = true
		}
		k.kill(k.s)
		s := k.open()
		c := k.consume(s, q, 40)
		for _, d := range k.receiveN(c, 40) {
			if held[d.ID] && !d.Redelivered {
				k.Errorf("%q was delivered again but is not marked as Redelivered", d.ID)
			}
		}
		k.kill(s)
		k.expectLeft(q, ids(msgs)...)
	})

	a.test("losses are counted", func(k *kit) {
		q := k.queue("q")
		k.send(messages(q, 4)...)
		exact := k.s.Capabilities().ExactLosses
		if !exact {
			k.Log("broker has no exact losses: only the bounds are checked")
		}
		c := k.consume(k.s, q, 4)
		first := k.receive(c).ID
		k.buffered(c, 3)
		k.kill(k.s)

		s := k.open()
		for _, d := range k.receiveN(k.consume(s, q, 4), 4) {
			switch {
			case d.ID == first:
				k.handedOut(d, 1)
			case exact && d.Losses != 0:
				k.Errorf("%q was received by nobody and has %d losses", d.ID, d.Losses)
			}
		}
		k.kill(s)

		s = k.open()
		c = k.consume(s, q, 4)
		ds := k.receiveN(c, 4)
		k.must("stop", c.Stop(k.ctx)) // so that released messages do not come back to it
		for _, d := range ds {
			switch {
			case d.ID == first:
				k.handedOut(d, 2)
			case exact:
				k.handedOut(d, 1)
			}
			k.ok("release", d.Release()) // is not charged
		}
		k.close(s)

		s = k.open()
		for _, d := range k.take(s, q, 4) {
			if d.ID == first {
				k.handedOut(d, 2)
			} else if exact {
				k.handedOut(d, 1)
			}
		}
		k.close(s) // a clean close is charged for the deliveries it holds too
		s = k.open()
		for _, d := range k.take(s, q, 4) {
			if d.ID == first {
				k.handedOut(d, 3)
			} else if exact {
				k.handedOut(d, 2)
			}
		}
	})

	a.test("a lost link answers every publish once, before Done is closed, and truly", func(k *kit) {
		q := k.queue("q")
		// A fast broker may answer every publish before the link is cut. Then the test tries again.
		for round, caught := 0, 0; caught < 3 && round < 12; round++ {
			cut := []int32{1, 500, 1500}[round%3]
			s := k.open()
			msgs := make([]broker.Message, 3000)
			for i := range msgs {
				msgs[i] = message(q, fmt.Sprintf("%d-%d", round, i))
			}
			o := newOutcomes(len(msgs))
			var answered atomic.Int32
			reached, published := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(published)
				s.Publish(k.ctx, msgs, func(i int, err error) {
					o.done(i, err)
					if answered.Add(1) == cut {
						close(reached)
					}
				})
			}()
			k.wait("outcomes", reached)
			k.kill(s)
			o.once(k)
			k.wait("Publish to return", published)
			if k.checkOutcomes(q, msgs, o) {
				caught++
			}
		}
	})

	a.test("publishers caught by a lost link learn what became of their messages", func(k *kit) {
		q := k.queue("q")
		s := k.open()
		const n, batches, each = 4, 20, 25
		var outs [n][batches]*outcomes
		var msgs [n][batches][]broker.Message
		for p := range n {
			for b := range batches {
				outs[p][b] = newOutcomes(each)
				for i := range each {
					msgs[p][b] = append(msgs[p][b], message(q, fmt.Sprintf("%d-%d-%d", p, b, i)))
				}
			}
		}
		var wg sync.WaitGroup
		reached := make(chan struct{})
		for p := range n {
			wg.Go(func() {
				for b := range batches {
					s.Publish(k.ctx, msgs[p][b], outs[p][b].done)
					if p == 0 && b == 2 {
						close(reached)
					}
				}
			})
		}
		k.wait("the first batches", reached)
		k.kill(s)
		k.returns("every Publish", wg.Wait)
		var all []broker.Message
		sum := newOutcomes(n * batches * each)
		for p := range n {
			for b := range batches {
				outs[p][b].once(k) // no more outcomes after Done and Publish
				for i, err := range outs[p][b].errs {
					sum.done(len(all), err)
					all = append(all, msgs[p][b][i])
				}
			}
		}
		k.checkOutcomes(q, all, sum)
	})

	a.test("a link lost while settling loses no message", func(k *kit) {
		q, dead, suspects := k.family("q")
		const n = 120 // a multiple of the settlements
		k.send(messages(q, n)...)
		s := k.open()
		ds := k.receiveN(k.consume(s, q, n), n)
		errs := make([]error, n)
		var wg sync.WaitGroup
		reached := make(chan struct{})
		for w := range len(settlements) {
			wg.Go(func() {
				for i := w; i < n; i += len(settlements) {
					errs[i] = settlements[w].do(k, ds[i])
					if i == n/4 {
						close(reached)
					}
				}
			})
		}
		k.wait("the first settlements", reached)
		k.kill(s)
		k.returns("settling", wg.Wait)
		left := make(map[string][]string)
		for i, err := range errs {
			how, to := settlements[i%len(settlements)].name, settlements[i%len(settlements)].to
			if how == "ack" || how == "release" {
				if err != nil {
					k.is(how, err, broker.ErrDeliveryLost)
				}
			}
			if err != nil {
				to = "" // it was given back
			}
			left[q+to] = append(left[q+to], ds[i].ID)
		}
		for _, queue := range []string{q, dead, suspects} {
			k.left(queue, left[queue]...) // more if their ack was lost
		}
	})

	a.test("links cut again and again lose nothing that was confirmed", func(k *kit) {
		q := k.queue("q")
		const total, cuts = 300, 5
		var mu sync.Mutex
		handled := make(map[string]bool)
		count := func() int { mu.Lock(); defer mu.Unlock(); return len(handled) }
		ctx, stop := context.WithCancel(k.ctx)
		defer stop()
		var wg sync.WaitGroup
		wg.Go(func() { // publishes until all are confirmed
			for next := 0; next < total && ctx.Err() == nil; {
				s, err := k.b.Open(ctx)
				if err != nil {
					continue
				}
				for ; next < total; next++ {
					o := newOutcomes(1)
					s.Publish(ctx, []broker.Message{message(q, fmt.Sprint(next))}, o.done)
					if <-o.all; o.errs[0] != nil {
						break // publish it again in the next session, perhaps twice
					}
				}
				_ = s.Close(ctx)
			}
		})
		wg.Go(func() { // handles until the test is over
			for ctx.Err() == nil {
				s, err := k.b.Open(ctx)
				if err != nil {
					continue
				}
				if c, err := s.Consume(ctx, broker.ConsumeOptions{Queue: q, Prefetch: 10}); err == nil {
					handle(ctx, c, func(id string) { mu.Lock(); handled[id] = true; mu.Unlock() })
				}
				_ = s.Close(context.WithoutCancel(ctx))
			}
		})
		for i := range cuts {
			k.eventually("progress", func() bool { return count() >= (i+1)*total/(cuts+2) })
			k.h.Kill(k.T, k.b)
		}
		k.eventually("every confirmed message to be handled", func() bool { return count() == total })
		stop()
		k.returns("publisher and consumer", wg.Wait)
	})
}

// handle acks deliveries until the consumer or ctx ends.
func handle(ctx context.Context, c broker.Consumer, got func(id string)) {
	for {
		select {
		case d, ok := <-c.Deliveries():
			if !ok {
				return
			}
			if d.Ack() == nil {
				got(d.ID)
			}
		case <-ctx.Done():
			return
		}
	}
}
