package memory

import (
	"cmp"
	"context"
	"fmt"
	"strconv"

	"github.com/seed-416683c9/dispatcher/broker"
)

// maxPrefetch is the largest prefetch of AMQP 0-9-1. It also keeps a typing error from allocating gigabytes.
const maxPrefetch = 1<<16 - 1

// consumer implements [broker.Consumer]. Broker.mu guards the fields that change.
type consumer struct {
	owner
	links[*consumer] // in queue.hungry

	tag        string
	deliveries chan broker.Delivery // sent to, drained and closed only under Broker.mu
	done       chan struct{}
	limit      int   // most unsettled deliveries; 0 = paused
	err        error // why it ended; nil after Stop or Close
}

// Consume implements [broker.Session]. It does not block. When it returns, ready messages are already in the channel. A
// Prefetch outside 1 to 65535 is ErrRejected, and so is the tag of a live consumer of this session.
func (s *session) Consume(ctx context.Context, o broker.ConsumeOptions) (broker.Consumer, error) {
	if err := s.enter(ctx); err != nil {
		return nil, fmt.Errorf("consume queue %q: %w", o.Queue, err)
	}
	defer s.broker.mu.Unlock()
	q, err := s.find(o.Queue)
	if err != nil {
		return nil, fmt.Errorf("consume queue %q: %w", o.Queue, err)
	}
	tag, err := s.newTag(o.Tag)
	if err != nil {
		return nil, fmt.Errorf("consume queue %q: %w", o.Queue, err)
	}
	most := cmp.Or(o.MaxPrefetch, o.Prefetch)
	if o.Prefetch < 1 || most < o.Prefetch || most > maxPrefetch {
		return nil, fmt.Errorf("consume queue %q: prefetch %d to %d is not between 1 and %d: %w",
			o.Queue, o.Prefetch, most, maxPrefetch, broker.ErrRejected)
	}
	c := &consumer{
		owner:      owner{session: s, queue: q, lost: make(chan struct{})},
		tag:        tag,
		deliveries: make(chan broker.Delivery, most),
		done:       make(chan struct{}),
		limit:      o.Prefetch,
	}
	c.links.self = c
	c.owner.consumer = c
	s.consumers[tag] = c
	s.owners[&c.owner] = struct{}{}
	q.consumers[c] = struct{}{}
	q.seat(c)
	q.dispatch()
	return c, nil
}

// newTag returns the tag of a new consumer: wanted, or a free tag if wanted is "".
func (s *session) newTag(wanted string) (string, error) {
	if err := checkName("tag", wanted); err != nil {
		return "", err
	}
	if _, taken := s.consumers[wanted]; taken {
		return "", fmt.Errorf("tag %q is in use: %w", wanted, broker.ErrRejected)
	}
	if wanted != "" {
		return wanted, nil
	}
	for {
		s.tags++
		tag := "consumer-" + strconv.Itoa(s.tags)
		if _, taken := s.consumers[tag]; !taken {
			return tag, nil
		}
	}
}

// Deliveries implements [broker.Consumer].
func (c *consumer) Deliveries() <-chan broker.Delivery { return c.deliveries }

// SetPrefetch implements [broker.Consumer]. It does not block. It returns an error if the consumer has ended.
func (c *consumer) SetPrefetch(ctx context.Context, n int) error {
	if err := c.session.enter(ctx); err != nil {
		return fmt.Errorf("set prefetch of consumer %q: %w", c.tag, err)
	}
	defer c.session.broker.mu.Unlock()
	switch {
	case c.owner.consumer == nil && c.err != nil:
		return fmt.Errorf("set prefetch of consumer %q: %w", c.tag, c.err)
	case c.owner.consumer == nil:
		return fmt.Errorf("set prefetch of consumer %q: %w", c.tag, broker.ErrClosed)
	case n < 0 || n > cap(c.deliveries):
		return fmt.Errorf("set prefetch of consumer %q: %d is not between 0 and %d: %w",
			c.tag, n, cap(c.deliveries), broker.ErrRejected)
	}
	c.limit = n
	c.queue.seat(c)
	c.queue.dispatch()
	return nil
}

// Stop implements [broker.Consumer]. It does not block. If ctx has ended, Stop ends the consumer and returns the error
// of ctx. On a dead session it returns ErrSessionLost.
func (c *consumer) Stop(ctx context.Context) error {
	ended := ctx.Err()
	b := c.session.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := c.session.err; err != nil {
		return fmt.Errorf("stop consumer %q: %w", c.tag, err)
	}
	c.halt(nil)
	c.queue.dispatch()
	if ended != nil {
		return fmt.Errorf("stop consumer %q: %w", c.tag, ended)
	}
	return nil
}

// Close implements [broker.Consumer]. It does not block and ignores its ctx. On a dead session it returns
// ErrSessionLost.
func (c *consumer) Close(context.Context) error {
	b := c.session.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := c.session.err; err != nil {
		return fmt.Errorf("close consumer %q: %w", c.tag, err)
	}
	c.halt(nil)
	c.lose(broker.ErrClosed)
	c.queue.dispatch()
	return nil
}

// Done implements [broker.Consumer].
func (c *consumer) Done() <-chan struct{} { return c.done }

// Err implements [broker.Consumer].
func (c *consumer) Err() error {
	c.session.broker.mu.Lock()
	defer c.session.broker.mu.Unlock()
	return c.err
}

// halt ends the flow of deliveries and closes the channel. Deliveries that were not received return to the queue
// unchanged; received ones stay open. A second call does nothing. The caller dispatches.
func (c *consumer) halt(reason error) {
	if c.owner.consumer == nil {
		return
	}
	c.owner.consumer = nil
	c.err = reason
	c.queue.hungry.remove(&c.links)
	delete(c.queue.consumers, c)
	delete(c.session.consumers, c.tag)
	for drained := false; !drained; {
		select { // a receiver may be emptying it at the same time
		case d := <-c.deliveries:
			c.giveBack(d.Settler.(*delivery))
		default:
			drained = true
		}
	}
	close(c.deliveries)
	close(c.done)
	c.retire()
}
