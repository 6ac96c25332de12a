package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// publishAtOnce is the most messages published under one lock, so that a large batch does not make other callers wait.
const publishAtOnce = 32

// Publish implements [broker.Session]. It does not block, and all done functions run before it returns. It need not
// wait for a message with the same ID in flight elsewhere: the step that writes a message also gives its outcome.
func (s *session) Publish(ctx context.Context, msgs []broker.Message, done func(i int, err error)) {
	s.publishing.Add(1)
	defer s.published()
	var room [publishAtOnce]error
	for first := 0; first < len(msgs); first += publishAtOnce {
		some := msgs[first:min(first+publishAtOnce, len(msgs))]
		errs := room[:len(some)]
		s.publishSome(ctx, some, errs)
		for i, err := range errs {
			done(first+i, err)
		}
	}
}

// published ends a call of Publish.
func (s *session) published() {
	if s.publishing.Add(-1) == 0 && s.dead.Load() {
		s.broker.mu.Lock()
		s.finish()
		s.broker.mu.Unlock()
	}
}

// publishSome publishes msgs in one step and sets the outcome of each.
func (s *session) publishSome(ctx context.Context, msgs []broker.Message, errs []error) {
	for i := range msgs {
		errs[i] = checkMessage(&msgs[i])
	}
	if err := s.enter(ctx); err != nil {
		err = fmt.Errorf("%w: %w", broker.ErrNotSent, err)
		for i := range errs {
			errs[i] = err
		}
		return
	}
	defer s.broker.mu.Unlock()
	p := publishing{broker: s.broker}
	for i := range msgs {
		if errs[i] == nil {
			errs[i] = p.publish(&msgs[i])
		}
	}
	p.end()
}

// publishing publishes messages one after the other. Most of them go where the one before went: it is routed once, and
// the queue serves its consumers once. Broker.mu stays locked meanwhile.
type publishing struct {
	broker *Broker
	last   *broker.Message // the latest that was routed; nil = none
	queues []*queue        // where it went
	err    error           // or why it went nowhere
	waits  *queue          // has messages that it has not handed out; nil = none
}

func (p *publishing) publish(m *broker.Message) error {
	if !m.NotBefore.IsZero() {
		now := time.Now()
		wait := m.NotBefore.Sub(now)
		if wait > broker.MaxDelay {
			return fmt.Errorf("due in %v, the maximum is %v: %w",
				wait.Round(time.Second), broker.MaxDelay, broker.ErrRejected)
		}
		if wait > 0 {
			p.broker.delay(*m, now, wait)
			return nil
		}
	}
	if p.last == nil || p.last.Exchange != m.Exchange || p.last.RoutingKey != m.RoutingKey {
		p.queues, p.err = p.broker.route(m)
		p.last = m
	}
	switch {
	case p.err != nil && m.Exchange == "": // the default exchange: the key is a queue's name
		return fmt.Errorf("queue %q: %w", m.RoutingKey, p.err)
	case p.err != nil:
		return fmt.Errorf("exchange %q: %w", m.Exchange, p.err)
	}
	for _, q := range p.queues {
		q.push(m)
		if q != p.waits {
			p.end()
			p.waits = q
		}
	}
	return nil
}

// end hands out what was published.
func (p *publishing) end() {
	if p.waits != nil {
		p.waits.dispatch()
	}
}

// route returns the queues that take m: at least one, or an error.
func (b *Broker) route(m *broker.Message) ([]*queue, error) {
	if m.Exchange == "" {
		if q := b.queues[m.RoutingKey]; q != nil {
			return []*queue{q}, nil
		}
		return nil, broker.ErrUnroutable
	}
	x := b.exchanges[m.Exchange]
	if x == nil {
		return nil, broker.ErrExchangeGone
	}
	if queues := x.queues[x.key(m.RoutingKey)]; len(queues) > 0 {
		return queues, nil
	}
	return nil, broker.ErrUnroutable
}

// checkMessage refuses messages that other brokers cannot carry, so that a program that works here works there.
func checkMessage(m *broker.Message) error {
	if m.ID == "" {
		return fmt.Errorf("empty message ID: %w", broker.ErrRejected)
	}
	if longest := max(len(m.Exchange), len(m.RoutingKey), len(m.ID), len(m.Type), len(m.ContentType),
		len(m.ContentEncoding), len(m.AppID), len(m.CorrelationID), len(m.ReplyTo)); longest > maxName {
		return checkNames(m)
	}
	for name := range m.Headers {
		if err := checkName("header name", name); err != nil {
			return err
		}
	}
	return nil
}

// checkNames returns an error for the first property that is too long.
func checkNames(m *broker.Message) error {
	for _, f := range [...]struct{ what, name string }{
		{"exchange", m.Exchange},
		{"routing key", m.RoutingKey},
		{"message ID", m.ID},
		{"type", m.Type},
		{"content type", m.ContentType},
		{"content encoding", m.ContentEncoding},
		{"app ID", m.AppID},
		{"correlation ID", m.CorrelationID},
		{"reply-to", m.ReplyTo},
	} {
		if err := checkName(f.what, f.name); err != nil {
			return err
		}
	}
	return nil
}
