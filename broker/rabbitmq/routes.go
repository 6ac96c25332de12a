package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

const (
	// maxRoutes is how many bindings a session remembers.
	maxRoutes = 10_000
	// routeFresh is how long an answer is reused.
	routeFresh = time.Second
	// manyAsked is how many answers are kept before stale ones are removed.
	manyAsked = 1000
	// routeTimeout bounds the check whether a queue is away.
	routeTimeout = 2 * time.Second
)

// routes knows the bindings that a session has declared, or was to declare. While the node of a classic queue is down,
// RabbitMQ up to 3.13 forgets the queue's bindings, and returns messages for it as if there were no such queue. The
// zero value is ready.
type routes struct {
	mu     sync.Mutex
	known  int
	queues map[target][]string
	asked  map[target]*askedRoute
}

// askedRoute is the answer to the question why messages could not be routed.
type askedRoute struct {
	over  chan struct{} // closed when the others are set
	err   error         // Is ErrUnavailable; nil = there is no queue
	until time.Time     // it is stale after that
}

// noteRoutes remembers the bindings of a topology, even if they cannot be declared now.
func (s *session) noteRoutes(t broker.Topology) {
	for _, b := range t.Bindings {
		s.routes.add(s.delays.target(b.Exchange, b.Key), b.Queue)
	}
}

func (r *routes) add(t target, queue string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known >= maxRoutes || slices.Contains(r.queues[t], queue) {
		return
	}
	if r.queues == nil {
		r.queues = make(map[target][]string)
	}
	r.queues[t] = append(r.queues[t], queue)
	r.known++
}

// forget forgets the bindings of a queue that the session deletes.
func (r *routes) forget(queue string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for t, queues := range r.queues {
		if i := slices.Index(queues, queue); i >= 0 {
			r.known--
			if queues = slices.Delete(queues, i, i+1); len(queues) == 0 {
				delete(r.queues, t)
			} else {
				r.queues[t] = queues
			}
		}
	}
}

// whyUnroutable finds out why no queue took a message. It looks at the queues that this session has bound to the key,
// or, with the default exchange, at the queue of that name. If one of them is away or was so a moment ago, or if that
// cannot be found out, it returns an error that Is ErrUnavailable. If there is none, it returns nil. It waits at most
// four seconds for each queue, and asks at most once a second for each key.
func (s *session) whyUnroutable(exchange, key string) error {
	t := s.delays.target(exchange, key)
	a, queues := s.routes.ask(t)
	if queues == nil {
		select {
		case <-a.over:
			return a.err
		case <-s.dead:
			return fmt.Errorf("%w: %w", broker.ErrUnavailable, s.Err())
		}
	}
	for _, queue := range queues {
		if a.err = s.look(queue, t); a.err != nil {
			break
		}
	}
	a.until = time.Now().Add(routeFresh)
	close(a.over)
	return a.err
}

// ask returns the answer for a target. If it also returns queues, the caller must check them and complete the answer.
func (r *routes) ask(t target) (*askedRoute, []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.asked[t]; a != nil && !a.stale() {
		return a, nil
	}
	queues := slices.Clone(r.queues[t])
	if t.exchange == "" {
		queues = []string{t.key}
	}
	a := &askedRoute{over: make(chan struct{})}
	if len(queues) == 0 {
		close(a.over)
		return a, nil
	}
	if len(r.asked) >= manyAsked {
		maps.DeleteFunc(r.asked, func(_ target, b *askedRoute) bool { return b.stale() })
	}
	if r.asked == nil {
		r.asked = make(map[target]*askedRoute)
	}
	r.asked[t] = a
	return a, queues
}

// stale reports whether it is time to ask again.
func (a *askedRoute) stale() bool {
	select {
	case <-a.over:
		return time.Now().After(a.until)
	default:
		return false
	}
}

// look returns an error if a queue is away, does not answer or has come back, and nil if RabbitMQ says that it does not
// exist or may not be used. It binds an existing queue again: when its node is back, RabbitMQ shows a classic queue
// before its bindings (3.10.8, measured), and somebody may have unbound it.
func (s *session) look(queue string, t target) error {
	if checkQueue(queue) != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), routeTimeout)
	defer cancel()
	err := refused(inspectQueue, s.admin(ctx, queue, func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		return err
	}))
	if err == nil && t.exchange != "" {
		binding, cancel := context.WithTimeout(context.Background(), routeTimeout)
		defer cancel()
		err = s.bind(binding, broker.Binding{Queue: queue, Exchange: t.exchange, Key: t.key})
	}
	switch {
	case err == nil:
		return fmt.Errorf("queue %q has just come back, or was just bound again: %w", queue, broker.ErrUnavailable)
	case errors.Is(err, broker.ErrUnavailable):
		return fmt.Errorf("queue %q: %w", queue, err)
	case errors.Is(err, broker.ErrQueueGone), errors.Is(err, broker.ErrRejected), errors.Is(err, broker.ErrLocked):
		return nil
	}
	// No answer does not mean that there is no queue: a node that comes back may take seconds to answer.
	return fmt.Errorf("queue %q: %w: %w", queue, broker.ErrUnavailable, err)
}
