package brokertest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

func testDelay(a *area) {
	a.test("a broker without delays says so and leaves the delivery open", func(k *kit) {
		if k.s.Capabilities().Delay {
			k.Skip("broker has delays")
		}
		k.Log("broker has no delays: the other tests of this area are skipped")
		q := k.queue("q")
		k.send(message(q, "m"))
		c := k.consume(k.s, q, 1)
		d := k.receive(c)
		k.is("retry with a delay", d.Retry(k.ctx, d.Forward(), time.Millisecond), errors.ErrUnsupported)
		k.ok("retry without delay", d.Retry(k.ctx, d.Forward(), 0))
		k.ok("ack", k.receive(c).Ack())
		k.close(k.s)
		k.expectLeft(q)
	})

	a.test("a broker without delays says so of a publish and takes its neighbours", func(k *kit) {
		if k.s.Capabilities().Delay {
			k.Skip("broker has delays")
		}
		testNoDelay(k)
	})

	test := func(name string, f func(k *kit)) {
		a.test(name, func(k *kit) {
			k.needDelay()
			f(k)
		})
	}

	testDelayedRetry(test)
	testDelayedPublish(test)
	testRouteWhenDue(test)
}

// testDelayedRetry is the part of the area that tests Settler.Retry, for brokers that have delays.
func testDelayedRetry(test func(name string, f func(k *kit))) {
	test("a delayed retry comes whole, to its own queue only, and is gone until then", func(k *kit) {
		const delay = 300 * time.Millisecond
		q, other, key := k.queue("q"), k.queue("other"), k.name("key")
		k.bind(key, q, other)
		want := richMessage(key, "m")
		want.Exchange = directExchange
		k.send(want)
		c := k.consume(k.s, q, 1)
		d := k.receive(c)
		start := time.Now()
		k.must("retry", d.Retry(k.ctx, d.Forward(), delay))
		k.send(message(q, "meanwhile")) // the retry has freed a place among the unsettled
		for range 2 {
			d := k.receive(c)
			k.ok("ack", d.Ack())
			if d.ID == "meanwhile" {
				continue
			}
			if took := time.Since(start); took < delay {
				k.Errorf("%q came after %v, want %v at least", d.ID, took, delay)
			}
			k.same(d.Message, want)
			if d.Queue != q || d.Losses != 0 {
				k.Errorf("after a delay: Queue %q, Losses %d, want %q, 0", d.Queue, d.Losses, q)
			}
		}
		k.close(k.s)
		k.expectLeft(q)
		k.expectLeft(other, "m")
	})

	test("every delayed message comes once and never early", func(k *kit) {
		seed := uint64(time.Now().UnixNano())
		k.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		q := k.queue("q")
		const n = 40
		msgs := messages(q, n)
		k.send(msgs...)
		c := k.consume(k.s, q, n)
		ds := k.receiveN(c, n)
		due := make(map[string]time.Time, n)
		for _, d := range ds {
			delay := time.Duration(1+random.IntN(700)) * time.Millisecond
			due[d.ID] = time.Now().Add(delay)
			k.must("retry", d.Retry(k.ctx, d.Forward(), delay))
		}
		for range n {
			d := k.receive(c)
			at, ok := due[d.ID]
			if !ok {
				k.Fatalf("%q came twice", d.ID)
			}
			if early := time.Until(at); early > 0 {
				k.Errorf("%q came %v early", d.ID, early)
			}
			delete(due, d.ID)
			k.ok("ack", d.Ack())
		}
		k.close(k.s)
		k.expectLeft(q)
	})

	// Per-message TTLs expire only at the head of a queue: in one queue, short delays would wait for long ones.
	test("short delays are not held up behind a long one", func(k *kit) {
		const long = 1500 * time.Millisecond
		q := k.queue("q")
		k.send(message(q, "long"), message(q, "short"), message(q, "shorter"))
		c := k.consume(k.s, q, 3)
		ds := k.receiveN(c, 3)
		start := time.Now()
		for i, delay := range []time.Duration{long, 150 * time.Millisecond, 50 * time.Millisecond} {
			k.must("retry", ds[i].Retry(k.ctx, ds[i].Forward(), delay))
		}
		var got []string
		for range 3 {
			d := k.receive(c)
			got = append(got, d.ID)
			k.ok("ack", d.Ack())
		}
		if got[2] != "long" {
			k.Errorf("arrived in the order %q", got)
		}
		if took := time.Since(start); took < long {
			k.Errorf("the long delay took %v, want at least %v", took, long)
		}
	})

	test("a delay below zero counts as none", func(k *kit) {
		q := k.queue("q")
		k.send(message(q, "m"))
		c := k.consume(k.s, q, 1)
		d := k.receive(c)
		k.must("retry", d.Retry(k.ctx, d.Forward(), -time.Hour))
		k.ok("ack", k.receive(c).Ack())
	})

	test("delayed messages outlive the session that delayed them", func(k *kit) {
		for i, end := range []func(s broker.Session){k.close, func(s broker.Session) { k.kill(s) }} {
			q := k.queue(fmt.Sprint("q", i))
			s := k.open()
			k.ok("publish", k.publish(s, message(q, "m"))[0])
			d := k.receive(k.consume(s, q, 1))
			const delay = 100 * time.Millisecond
			start := time.Now()
			again := d.Forward()
			again.Headers["attempt"] = int64(1)
			k.must("retry", d.Retry(k.ctx, again, delay))
			k.is("ack of what was retried", d.Ack(), broker.ErrSettled)
			end(s)
			// Cutting the link may lose the ack of the original. The original then comes too, at once.
			c := k.consume(k.open(), q, 1)
			for d = k.receive(c); d.Headers["attempt"] == nil; d = k.receive(c) {
				k.ok("ack", d.Ack())
				if i == 0 {
					k.Errorf("%q was retried and comes again itself", d.ID)
				}
			}
			if took := time.Since(start); took < delay {
				k.Errorf("came after %v, want %v at least", took, delay)
			}
			k.ok("ack", d.Ack())
		}
	})

	test("a delayed retry that fails leaves the delivery open", func(k *kit) {
		q := k.queue("q")
		k.send(message(q, "m"))
		c := k.consume(k.s, q, 1)
		d := k.receive(c)
		if err := d.Retry(ended(), d.Forward(), time.Minute); err == nil {
			k.Fatal("a retry whose context had ended succeeded")
		}
		k.must("release", d.Release())
		d = k.receive(c)
		if d.ID != "m" || d.Losses != 0 {
			k.Errorf("got %q with %d losses, want the released m, uncharged", d.ID, d.Losses)
		}
		k.ok("ack", d.Ack())
	})
}
