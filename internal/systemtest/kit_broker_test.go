package systemtest_test

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// hooked is a broker whose consumers and sessions end as a test says. Like some adapters, it has a goroutine between
// the broker's channel and the worker's. So the worker can still receive deliveries that are lost.
type hooked struct {
	broker.Broker
	stop, closeConsumer, closeSession func(ctx context.Context, next func() error) error
	released                          func()
	arrives                           func(*broker.Delivery)
	lateDone                          time.Duration // how long Session.Done closes after the end of its consumers
}

type hookedSession struct {
	broker.Session
	h    *hooked
	done chan struct{}
}

type hookedConsumer struct {
	broker.Consumer
	h          *hooked
	deliveries chan broker.Delivery
}

type hookedSettler struct {
	broker.Settler
	h *hooked
}

// withHooks puts h between the server and its broker.
func withHooks(h *hooked) func(*dispatcher.ServerConfig) {
	return func(c *dispatcher.ServerConfig) { h.Broker = c.Broker; c.Broker = h }
}

func (h *hooked) Open(ctx context.Context) (broker.Session, error) {
	s, err := h.Broker.Open(ctx)
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if <-s.Done(); h.lateDone > 0 {
			<-time.After(h.lateDone)
		}
	}()
	return hookedSession{s, h, done}, nil
}

func (s hookedSession) Done() <-chan struct{} { return s.done }

func (s hookedSession) Consume(ctx context.Context, o broker.ConsumeOptions) (broker.Consumer, error) {
	c, err := s.Session.Consume(ctx, o)
	if err != nil {
		return nil, err
	}
	out := &hookedConsumer{c, s.h, make(chan broker.Delivery, o.Prefetch)}
	go func() {
		defer close(out.deliveries)
		for d := range c.Deliveries() {
			d.Settler = hookedSettler{d.Settler, s.h}
			if s.h.arrives != nil {
				s.h.arrives(&d)
			}
			out.deliveries <- d
		}
	}()
	return out, nil
}

func (s hookedSession) Close(ctx context.Context) error {
	return via(s.h.closeSession, ctx, s.Session.Close)
}
func (c *hookedConsumer) Deliveries() <-chan broker.Delivery { return c.deliveries }
func (c *hookedConsumer) Stop(ctx context.Context) error     { return via(c.h.stop, ctx, c.Consumer.Stop) }
func (c *hookedConsumer) Close(ctx context.Context) error {
	return via(c.h.closeConsumer, ctx, c.Consumer.Close)
}

func (s hookedSettler) Release() error {
	if s.h.released != nil {
		s.h.released()
	}
	return s.Settler.Release()
}

func via(hook func(context.Context, func() error) error, ctx context.Context, next func(context.Context) error) error {
	if hook == nil {
		return next(ctx)
	}
	return hook(ctx, func() error { return next(ctx) })
}

// scripted is a broker that answers publishes as a test says. It does not report that it blocks, unless candid is set.
type scripted struct {
	candid bool // its sessions report that they are blocked
	broker.Broker
	answer func(broker.Message) error // nil = ask the broker

	unanswered int // the number that sessions report
}

type scriptedSession struct {
	broker.Session
	b *scripted
}

func (b *scripted) Open(ctx context.Context) (broker.Session, error) {
	s, err := b.Broker.Open(ctx)
	if err != nil {
		return nil, err
	}
	return scriptedSession{s, b}, nil
}

func (s scriptedSession) Publish(ctx context.Context, msgs []broker.Message, done func(int, error)) {
	for i, m := range msgs {
		if s.b.answer != nil {
			switch err := s.b.answer(m); err {
			case nil:
			case errSilent:
				continue
			default:
				done(i, err)
				continue
			}
		}
		s.Session.Publish(ctx, []broker.Message{m}, func(_ int, err error) { done(i, err) })
	}
}

func (s scriptedSession) Blocked() (string, bool) {
	if s.b.candid {
		return s.Session.Blocked()
	}
	return "", false
}

func (s scriptedSession) Status() broker.Status {
	return broker.Status{Unanswered: s.b.unanswered}
}

// errSilent, from a script, means no answer at all.
var errSilent = errors.New("silent")

// script puts answer between the rig's server and its broker.
func script(answer func(broker.Message) error) func(*dispatcher.ServerConfig) {
	return func(c *dispatcher.ServerConfig) { c.Broker = &scripted{Broker: c.Broker, answer: answer} }
}

// slowGet is a broker whose TryGet blocks until the gate opens.
type slowGet struct {
	broker.Broker
	entered, gate chan struct{}
	broken        atomic.Bool // a context ended before the gate opened
}

func (b *slowGet) Open(ctx context.Context) (broker.Session, error) {
	s, err := b.Broker.Open(ctx)
	return slowSession{s, b}, err
}

type slowSession struct {
	broker.Session
	*slowGet
}

func (s slowSession) TryGet(ctx context.Context, queue string, n int) ([]broker.Delivery, error) {
	s.entered <- struct{}{}
	select {
	case <-s.gate:
	case <-ctx.Done():
		s.broken.Store(true) // RabbitMQ may have delivered a message by now, and would count a loss
		return nil, ctx.Err()
	}
	return s.Session.TryGet(ctx, queue, n)
}
