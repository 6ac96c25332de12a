package memory

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/seed-416683c9/dispatcher/broker"
)

// exchange routes messages to queues. Broker.mu guards it.
type exchange struct {
	kind   broker.ExchangeKind
	queues map[string][]*queue // by key, each queue once
}

// binding refers a queue to its entry in exchange.queues, which is removed when the queue is deleted.
type binding struct {
	exchange *exchange
	key      string
}

// key returns the key to route by. A fanout exchange ignores keys: its bindings with different keys are stored as one.
// That is not visible, since there is no unbinding.
func (x *exchange) key(key string) string {
	if x.kind == broker.Fanout {
		return ""
	}
	return key
}

func (x *exchange) bind(q *queue, key string) {
	key = x.key(key)
	if !slices.Contains(x.queues[key], q) {
		x.queues[key] = append(x.queues[key], q)
		q.bindings = append(q.bindings, binding{x, key})
	}
}

func (x *exchange) unbind(q *queue, key string) {
	x.queues[key] = slices.DeleteFunc(x.queues[key], func(o *queue) bool { return o == q })
	if len(x.queues[key]) == 0 {
		delete(x.queues, key)
	}
}

// maxName is the length of the longest name. AMQP 0-9-1 writes the length of a short string in one byte.
const maxName = 255

func checkName(what, name string) error {
	if len(name) > maxName {
		return fmt.Errorf("%s is %d bytes long, the maximum is %d: %w", what, len(name), maxName, broker.ErrRejected)
	}
	return nil
}

// Declare implements [broker.Session]. It does not block.
func (s *session) Declare(ctx context.Context, t broker.Topology) error {
	if err := s.enter(ctx); err != nil {
		return fmt.Errorf("declare topology: %w", err)
	}
	defer s.broker.mu.Unlock()
	for _, x := range t.Exchanges {
		if err := s.broker.declareExchange(x); err != nil {
			return fmt.Errorf("declare exchange %q: %w", x.Name, err)
		}
	}
	for _, q := range t.Queues {
		if err := s.declareQueue(q); err != nil {
			return fmt.Errorf("declare queue %q: %w", q.Name, err)
		}
	}
	for _, l := range t.Bindings {
		if err := s.bind(l); err != nil {
			return fmt.Errorf("bind queue %q to exchange %q with key %q: %w", l.Queue, l.Exchange, l.Key, err)
		}
	}
	return nil
}

func (b *Broker) declareExchange(spec broker.Exchange) error {
	if spec.Name == "" {
		return fmt.Errorf("the default exchange always exists: %w", broker.ErrRejected)
	}
	if err := checkName("name", spec.Name); err != nil {
		return err
	}
	if spec.Kind != broker.Direct && spec.Kind != broker.Fanout {
		return fmt.Errorf("kind %q: %w", spec.Kind, errors.ErrUnsupported)
	}
	x := b.exchanges[spec.Name]
	if x == nil {
		b.exchanges[spec.Name] = &exchange{kind: spec.Kind, queues: make(map[string][]*queue)}
		return nil
	}
	if x.kind != spec.Kind {
		return fmt.Errorf("it already exists with kind %q, not %q: %w", x.kind, spec.Kind, broker.ErrRejected)
	}
	return nil
}

func (s *session) declareQueue(spec broker.QueueSpec) error {
	if spec.Name == "" {
		return fmt.Errorf("empty name: %w", broker.ErrRejected)
	}
	if err := checkName("name", spec.Name); err != nil {
		return err
	}
	if spec.Type != "" {
		return fmt.Errorf("type %q: %w", spec.Type, errors.ErrUnsupported)
	}
	if spec.Name == broker.Undeliverable && spec.Ephemeral {
		return fmt.Errorf("the queue of undeliverable messages cannot be ephemeral: %w", broker.ErrRejected)
	}
	q := s.broker.queues[spec.Name]
	if q == nil {
		q = newQueue(spec.Name)
		if spec.Ephemeral {
			q.holder = s
			s.ephemeral[q] = struct{}{}
		}
		s.broker.queues[spec.Name] = q
		return nil
	}
	if err := s.checkLock(q); err != nil {
		return err
	}
	if ephemeral := q.holder != nil; ephemeral != spec.Ephemeral {
		return fmt.Errorf("it already exists with ephemeral %t, not %t: %w",
			ephemeral, spec.Ephemeral, broker.ErrRejected)
	}
	return nil
}

func (s *session) bind(l broker.Binding) error {
	if l.Exchange == "" {
		return fmt.Errorf("the default exchange cannot have bindings: %w", broker.ErrRejected)
	}
	if err := checkName("key", l.Key); err != nil {
		return err
	}
	x, q := s.broker.exchanges[l.Exchange], s.broker.queues[l.Queue]
	if x == nil {
		return fmt.Errorf("no such exchange: %w", broker.ErrRejected)
	}
	if q == nil {
		return fmt.Errorf("no such queue: %w", broker.ErrRejected)
	}
	if err := s.checkLock(q); err != nil {
		return err
	}
	x.bind(q, l.Key)
	return nil
}

// checkLock returns ErrLocked if q is an ephemeral queue of another session.
func (s *session) checkLock(q *queue) error {
	if q.holder != nil && q.holder != s {
		return broker.ErrLocked
	}
	return nil
}

// find returns a queue that this session may use.
func (s *session) find(name string) (*queue, error) {
	q := s.broker.queues[name]
	if q == nil {
		return nil, broker.ErrQueueGone
	}
	return q, s.checkLock(q)
}

// deleteQueue removes a queue with all its messages. Its consumers end and lose their deliveries. Deliveries received
// from a stopped consumer or by TryGet can still be settled, so that DeadLetter saves the message.
func (b *Broker) deleteQueue(q *queue) {
	delete(b.queues, q.name)
	for _, l := range q.bindings {
		l.exchange.unbind(q, l.key)
	}
	q.bindings = nil
	gone := fmt.Errorf("queue %q was deleted: %w", q.name, broker.ErrQueueGone)
	for c := range q.consumers {
		c.halt(gone)
		c.lose(gone)
	}
	q.purge()
	b.signal()
	if q.holder != nil {
		delete(q.holder.ephemeral, q)
	}
}
