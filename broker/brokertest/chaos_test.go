package brokertest

import (
	"context"
	"errors"
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func newChaos() *Chaos {
	m := memory.New()
	return NewChaos(m, func() { m.KillSessions() })
}

// chaosKit is a kit whose broker is a Chaos.
func chaosKit(t *testing.T, c *Chaos) *kit {
	t.Helper()
	t.Parallel()
	return newKit(t, Harness{
		New:  func(testing.TB) broker.Broker { return c },
		Kill: func(testing.TB, broker.Broker) { c.Kill() },
	})
}

func TestChaosAtRestPassesTheSuite(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func() *Chaos{
		"kill by the broker": newChaos,
		"kill by Close":      func() *Chaos { return NewChaos(memory.New(), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			Run(t, Harness{
				New:  func(testing.TB) broker.Broker { return make() },
				Kill: func(_ testing.TB, b broker.Broker) { b.(*Chaos).Kill() },
			})
		})
	}
}

func TestChaosFailsOpenAndDeclareUntilToldOtherwise(t *testing.T) {
	c := newChaos()
	k := chaosKit(t, c)
	q := k.queue("q")
	broken := errors.New("broken")

	c.FailOpen(broken)
	_, err := k.b.Open(k.ctx)
	k.is("Open", err, broken)
	c.FailOpen(nil)
	k.open()
	if n := c.Opens(); n != 3 {
		k.Errorf("Opens is %d after 2 successes and a failure", n)
	}

	c.RefuseDeclare(broken)
	other := k.name("other")
	k.is("Declare", k.s.Declare(k.ctx, broker.Topology{Queues: []broker.QueueSpec{{Name: other}}}), broken)
	c.RefuseDeclare(nil)
	k.is("publish to an undeclared queue", k.publish(k.s, message(other, "m"))[0], broker.ErrUnroutable)
	k.send(message(q, "m"))
}

func TestChaosBlocksWhateverPublishes(t *testing.T) {
	c := newChaos()
	k := chaosKit(t, c)
	q := k.queue("q")
	k.send(messages(q, 2)...)
	ds := k.receiveN(k.consume(k.s, q, 2), 2)
	short, cancel := context.WithCancel(k.ctx)
	c.Block(true)
	c.Block(true)

	waits, ends, dies := newOutcomes(1), newOutcomes(1), newOutcomes(1)
	returned := make(chan struct{}, 5)
	publish := func(s broker.Session, ctx context.Context, id string, o *outcomes) {
		go func() {
			s.Publish(ctx, []broker.Message{message(q, id)}, o.done)
			returned <- struct{}{}
		}()
	}
	publish(k.s, k.ctx, "waits", waits)
	publish(k.s, short, "ends", ends)
	other := k.open()
	publish(other, k.ctx, "dies", dies)
	retried := make(chan error, 1)
	go func() { retried <- ds[0].Retry(k.ctx, ds[0].Forward(), 0) }()
	k.is("a retry whose context ends", ds[1].Retry(ended(), ds[1].Forward(), 0), broker.ErrNotSent)
	k.ok("an ack meanwhile", ds[1].Ack())

	cancel()
	k.wait("the outcome of the publish whose context ended", ends.all)
	k.is("publish whose context ended", ends.errs[0], broker.ErrNotSent)
	k.is("publish whose context ended", ends.errs[0], context.Canceled)
	k.close(other)
	k.wait("the outcome of the publish whose session ended", dies.all)
	k.is("publish whose session ended", dies.errs[0], broker.ErrNotSent)
	if closed(waits.all) {
		k.Error("a blocked broker confirmed")
	}

	c.Block(false)
	k.wait("the outcome of the publish that waited", waits.all)
	k.ok("publish that waited", waits.errs[0])
	k.returns("the retry", func() { k.ok("retry that waited", <-retried) })
	k.returns("every Publish", func() { <-returned; <-returned; <-returned })
	k.close(k.s)
	k.expectLeft(q, "m0000", "waits")
}

func TestChaosHoldsConfirmationsUntilReleased(t *testing.T) {
	c := newChaos()
	k := chaosKit(t, c)
	q := k.queue("q")
	c.HoldConfirms(true)
	good, bad := newOutcomes(2), newOutcomes(1)
	k.s.Publish(k.ctx, messages(q, 2), good.done)
	k.s.Publish(k.ctx, []broker.Message{message(k.name("nowhere"), "m")}, bad.done)
	k.expectIDs(k.take(k.s, q, 2), "m0000", "m0001") // they have arrived
	if closed(good.all) || closed(bad.all) {
		k.Error("done ran for held outcomes")
	}
	closing := make(chan error, 1)
	go func() { closing <- k.s.Close(k.ctx) }() // waits for the held outcomes
	c.HoldConfirms(false)
	k.wait("the outcomes", good.all)
	k.wait("the outcomes", bad.all)
	k.returns("Close", func() { k.ok("close", <-closing) })
	good.once(k)
	// Close may run first. It then waits for the outcomes, which must still be true.
	for _, err := range good.errs {
		k.ok("publish", err)
	}
	k.is("publish to nowhere", bad.errs[0], broker.ErrUnroutable)
}

func TestChaosLeavesHeldConfirmationsUnconfirmedWhenTheSessionDies(t *testing.T) {
	for name, end := range map[string]func(k *kit, c *Chaos){
		"kill":                          func(k *kit, _ *Chaos) { k.kill(k.s) },
		"close whose context has ended": func(k *kit, _ *Chaos) { _ = k.s.Close(ended()); k.wait("Done", k.s.Done()) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newChaos()
			k := chaosKit(t, c)
			q := k.queue("q")
			c.HoldConfirms(true)
			o := newOutcomes(3)
			k.s.Publish(k.ctx, messages(q, 3), o.done)
			end(k, c)
			o.once(k)
			for _, err := range o.errs {
				k.is("held outcome", err, broker.ErrUnconfirmed)
				k.oneOutcome(err)
			}
			k.is("publish afterwards", k.publish(k.s, message(q, "m"))[0], broker.ErrNotSent)
			c.HoldConfirms(false)
			k.expectLeft(q, "m0000", "m0001", "m0002")
		})
	}
}

func TestChaosFailsDeadLettersUntilToldOtherwise(t *testing.T) {
	c := newChaos()
	k := chaosKit(t, c)
	q, dead := k.queueAndDead("q")
	k.send(messages(q, 2)...)
	ds := append(k.take(k.s, q, 1), k.receive(k.consume(k.s, q, 1)))
	broken := errors.New("broken")
	c.FailDeadLetter(broken)
	for _, d := range ds {
		k.is("dead-letter", d.DeadLetter(k.ctx, d.Forward()), broken)
	}
	c.FailDeadLetter(nil)
	for _, d := range ds {
		k.ok("dead-letter", d.DeadLetter(k.ctx, d.Forward()))
	}
	k.close(k.s)
	k.expectLeft(dead, "m0000", "m0001")
}

func TestChaosSurvivesTurningEveryKnobAtOnce(t *testing.T) {
	c := newChaos()
	k := chaosKit(t, c)
	q, _ := k.queueAndDead("q")
	outs := make([]*outcomes, 40)
	k.parallel("chaos", 4, func(w int) {
		for i := w; i < len(outs); i += 4 {
			s, err := k.b.Open(k.ctx)
			if err != nil {
				k.Errorf("open: %v", err)
				return
			}
			outs[i] = newOutcomes(20)
			c.HoldConfirms(i%3 == 0)
			c.Block(i%5 == 0)
			go c.Block(false)
			s.Publish(k.ctx, messages(q, 20), outs[i].done)
			c.HoldConfirms(i%2 == 0)
			if i%7 == 0 {
				c.Kill()
			}
			_ = s.Close(ended())
			select {
			case <-s.Done():
			case <-k.ctx.Done():
				k.Errorf("a session did not end")
			}
		}
	})
	for _, o := range outs {
		o.once(k)
		for _, err := range o.errs {
			k.oneOutcome(err)
		}
	}
}
