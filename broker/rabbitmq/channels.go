package rabbitmq

import (
	"context"
	"fmt"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// A connection has 2,047 channels unless the node or the URL allows fewer. Every consumer occupies one for its
// lifetime, and so do the deliveries of a TryGet. Some are kept free for calls that must work beside any number of
// consumers.
const (
	// maxCalls is how many declarations, inspections and the like may be under way at once, each on a channel of its
	// own: a broker that does not answer must not use up the connection's channels.
	maxCalls = 16
	// maxPulls is how many channels consumers leave to TryGet.
	maxPulls = 64
	// maxSingles is how many of these are kept for a TryGet of a single message. Scans of dead letters hold many
	// channels, and a suspect must be fetched nevertheless.
	maxSingles = 8
)

// channels divides the channels of the consuming connection.
type channels struct {
	most    int // what the broker and the URL allow
	singles int
	pulling int           // kept for TryGet
	probing int           // kept for the consumer of probes, which is not counted
	calls   chan struct{} // one taken for every call under way

	mu        sync.Mutex // guards what follows
	consumers int
	pulls     int
}

// newChannels divides most channels. If there are few, each purpose gets a quarter at most.
func newChannels(most uint16) channels {
	n := int(most)
	return channels{
		most:    n,
		singles: min(maxSingles, n/8),
		pulling: min(maxPulls, n/4),
		probing: min(1, n/32),
		calls:   make(chan struct{}, max(1, min(maxCalls, n/4))),
	}
}

// kept returns how many channels are reserved for purposes other than consumers.
func (c *channels) kept() int { return c.pulling + c.probing + cap(c.calls) }

// consumer takes a channel for a consumer of a queue.
func (c *channels) consumer(queue string) error {
	if ofProbes(queue) {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.consumers >= c.most-c.kept() || c.consumers+c.pulls >= c.most-cap(c.calls) {
		return fmt.Errorf("%w: %s", broker.ErrRejected, c.full())
	}
	c.consumers++
	return nil
}

// full explains why there is no channel for another consumer. The caller holds mu.
func (c *channels) full() string {
	return fmt.Sprintf("the connection has no channel for another consumer: "+
		"%d of %d channels have a consumer, and %d are kept for other calls; "+
		"use another server or raise channel_max on the node",
		c.consumers, c.most, c.kept())
}

// pull takes a channel for a TryGet of so many messages.
func (c *channels) pull(messages int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	room := c.most - cap(c.calls) - c.consumers - c.pulls
	if messages > 1 {
		room -= c.singles
	}
	if room <= 0 {
		return fmt.Errorf("the connection has %d channels, and none is free: "+
			"%d consumers, and %d calls of TryGet with unsettled messages; settle some",
			c.most, c.consumers, c.pulls)
	}
	c.pulls++
	return nil
}

// give frees the channel of a consumer, or of a TryGet, of a queue.
func (c *channels) give(queue string, consumer bool) {
	if ofProbes(queue) && consumer {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if consumer {
		c.consumers--
	} else {
		c.pulls--
	}
}

// status explains why there cannot be another consumer. It returns "" if there can.
func (c *channels) status() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.consumers < c.most-c.kept() {
		return ""
	}
	return c.full()
}

// turns allows one call at a time on a queue, so that a queue that does not answer holds up only its own calls. The
// zero value is ready.
type turns struct {
	mu     sync.Mutex
	queues map[string]*queueTurn
}

type queueTurn struct {
	turn
	users int // callers that have it or wait for it; guarded by turns.mu
}

// take waits for the turn of a queue. The caller calls give when the queue has answered.
func (t *turns) take(ctx context.Context, over <-chan struct{}, queue string) (give func(), err error) {
	t.mu.Lock()
	q := t.queues[queue]
	if q == nil {
		if t.queues == nil {
			t.queues = make(map[string]*queueTurn)
		}
		q = &queueTurn{turn: newTurn()}
		t.queues[queue] = q
	}
	q.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if q.users--; q.users == 0 {
			delete(t.queues, queue)
		}
	}
	if err := q.turn.take(ctx, over); err != nil {
		leave()
		return nil, err
	}
	return func() { q.turn.give(); leave() }, nil
}

// ask is call, limited to one at a time for each queue.
func ask[T any](ctx context.Context, s *session, queue string, f func() (T, error), undo func(T)) (T, error) {
	return call(ctx, s, func() (none T, err error) {
		give, err := s.turns.take(ctx, s.dead, queue)
		if err != nil {
			return none, err
		}
		defer give()
		return f()
	}, undo)
}

// admin runs f on a throw-away channel of the consuming connection, because RabbitMQ closes the channel of a refused
// call. It takes the turn of a queue, of all bindings (bindTurn), or none ("").
func (s *session) admin(ctx context.Context, queue string, f func(ch *amqp.Channel) error) error {
	do := func() (struct{}, error) {
		select {
		case s.channels.calls <- struct{}{}:
			defer func() { <-s.channels.calls }()
		case <-ctx.Done():
			return struct{}{}, ctx.Err()
		case <-s.dead:
			return struct{}{}, errOver
		}
		ch, err := s.consume.Channel()
		if err != nil {
			return struct{}{}, err
		}
		err = f(ch)
		_ = ch.Close() // does nothing if the broker has closed it
		return struct{}{}, err
	}
	if queue == "" {
		_, err := call(ctx, s, do, nil)
		return err
	}
	_, err := ask(ctx, s, queue, do, nil)
	return err
}
