package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Publish implements [broker.Session]. It does not block, and all done functions run before it returns. It need not
// wait for a message with the same ID in flight elsewhere: the step that writes a message also gives its outcome.
func (s *session) Publish(ctx context.Context, msgs []broker.Message, done func(i int, err error)) {
	s.broker.mu.Lock()
	s.publishing++ // keeps Done open until every done function has run
	s.broker.mu.Unlock()
	defer func() {
		s.broker.mu.Lock()
		s.publishing--
		s.finish()
		s.broker.mu.Unlock()
	}()
	for i := range msgs {
		// The lock is taken per message, so that a large batch does not make other callers wait.
		done(i, s.publish(ctx, &msgs[i]))
	}
}

func (s *session) publish(ctx context.Context, m *broker.Message) error {
	if err := s.enter(ctx); err != nil {
		return fmt.Errorf("%w: %w", broker.ErrNotSent, err)
	}
	defer s.broker.mu.Unlock()
	if err := checkMessage(m); err != nil {
		return err
	}
	if !m.NotBefore.IsZero() {
		now := time.Now()
		wait := m.NotBefore.Sub(now)
		if wait > broker.MaxDelay {
			return fmt.Errorf("due in %v, the maximum is %v: %w",
				wait.Round(time.Second), broker.MaxDelay, broker.ErrRejected)
		}
		if wait > 0 {
			s.broker.delay(*m, now, wait)
			return nil
		}
	}
	queues, err := s.broker.route(m)
	if err != nil {
		if m.Exchange == "" { // the default exchange: the key is a queue's name
			return fmt.Errorf("queue %q: %w", m.RoutingKey, err)
		}
		return fmt.Errorf("exchange %q: %w", m.Exchange, err)
	}
	sent := *m
	sent.NotBefore = time.Time{}
	for _, q := range queues {
		q.push(&sent)
		q.dispatch()
	}
	return nil
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
	for name := range m.Headers {
		if err := checkName("header name", name); err != nil {
			return err
		}
	}
	return nil
}
