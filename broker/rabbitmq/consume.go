package rabbitmq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/seed-416683c9/dispatcher/broker"
)

// maxPrefetch is the largest prefetch count of basic.qos.
const maxPrefetch = 1<<16 - 1

// consumer implements [broker.Consumer] with one channel, its lane.
//
// RabbitMQ fixes the prefetch of a subscription when it begins and counts only that subscription's own deliveries. So a
// higher limit adds a subscription for the difference. A lower one cancels all subscriptions; as their deliveries are
// settled, new subscriptions take the room that becomes free. At all times
//
//	deliveries of ended subscriptions that are not settled + prefetch of live ones <= limit,
//
// or soon will be after the limit was lowered. So there are never more unsettled deliveries than the channel has room
// for.
//
// A queue serves several subscriptions in turn, and a quorum queue sends each its messages in groups. So a consumer that
// keeps the order has one live subscription at a time. After the limit was raised it is replaced by one for all the room
// that there is then, and room that is made later is left.
type consumer struct {
	*lane
	tag        string
	ordered    bool // see broker.Consumer.SetPrefetch
	ackEach    bool
	deliveries chan broker.Delivery
	done       chan struct{}
	pumps      sync.WaitGroup // one for every live subscription
	ended      sync.Once

	// Guarded by lane.mu.
	limit  int
	subs   []*subscription // those that are live or have unsettled deliveries
	subbed int             // how many were ever begun
	ending bool            // no subscription may begin
	err    error
}

// Consume implements [broker.Session]. A tag that a live consumer of this session has is ErrRejected.
func (s *session) Consume(ctx context.Context, o broker.ConsumeOptions) (broker.Consumer, error) {
	c, err := s.newConsumer(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("consume queue %q: %w", o.Queue, err)
	}
	return c, nil
}

func (s *session) newConsumer(ctx context.Context, o broker.ConsumeOptions) (*consumer, error) {
	most := cmp.Or(o.MaxPrefetch, o.Prefetch)
	if o.Prefetch < 1 || most < o.Prefetch || most > maxPrefetch {
		return nil, fmt.Errorf("prefetch %d to %d is not between 1 and %d: %w", o.Prefetch, most, maxPrefetch, broker.ErrRejected)
	}
	if err := checkQueue(o.Queue); err != nil {
		return nil, err
	}
	if err := checkName("tag", o.Tag); err != nil {
		return nil, err
	}
	return ask(ctx, s, o.Queue, func() (*consumer, error) {
		tag, err := s.reserveTag(o.Tag)
		if err != nil {
			return nil, err
		}
		c := &consumer{
			tag:        tag,
			limit:      o.Prefetch,
			ordered:    o.Prefetch == 1,
			ackEach:    o.AckEach,
			deliveries: make(chan broker.Delivery, most),
			done:       make(chan struct{}),
		}
		if err = s.channels.consumer(o.Queue); err == nil {
			if c.lane, err = s.openLane(o.Queue, most); err == nil {
				c.lane.consumer = c
				if err = c.subscribe(o.Prefetch); err == nil {
					c.start()
					return c, nil
				}
				_ = c.ch.Close()
			}
			s.channels.give(o.Queue, true)
		}
		s.freeTag(tag)
		return nil, refused(readQueue, err)
	}, func(c *consumer) { c.lose(broker.ErrClosed) })
}

// reserveTag ensures that no other consumer of the session has the tag. The broker requires that only within a channel.
func (s *session) reserveTag(wanted string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	tag := wanted
	for tag == "" || wanted == "" && s.tags[tag] {
		s.tagged++
		tag = "consumer-" + strconv.Itoa(s.tagged)
	}
	if s.tags[tag] {
		return "", fmt.Errorf("tag %q is in use: %w", tag, broker.ErrRejected)
	}
	s.tags[tag] = true
	return tag, nil
}

func (s *session) freeTag(tag string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tags, tag)
}

// Deliveries implements [broker.Consumer].
func (c *consumer) Deliveries() <-chan broker.Delivery { return c.deliveries }

// Done implements [broker.Consumer].
func (c *consumer) Done() <-chan struct{} { return c.done }

// Err implements [broker.Consumer].
func (c *consumer) Err() error {
	select {
	case <-c.done:
	default:
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Stop implements [broker.Consumer].
func (c *consumer) Stop(ctx context.Context) error {
	if c.finish(nil) {
		if err := c.s.begin(&c.s.goroutines); err == nil {
			go c.stop()
		}
	}
	return c.await(ctx, "stop", c.done)
}

// stop cancels the subscriptions gracefully.
func (c *consumer) stop() {
	defer c.s.goroutines.done()
	if c.calling.take(context.Background(), c.lost) == nil {
		_ = c.cancel() // an error ends the channel, and with it the pumps
		c.calling.give()
	}
	c.end()
}

// takenAway reports whether the lane is lost, and not because of Close.
func (c *consumer) takenAway() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone != nil && !errors.Is(c.gone, broker.ErrClosed)
}

// Close implements [broker.Consumer].
func (c *consumer) Close(ctx context.Context) error {
	c.finish(nil)
	c.lose(broker.ErrClosed)
	return c.await(ctx, "close", c.over)
}

// await waits for the end of Stop or Close.
func (c *consumer) await(ctx context.Context, verb string, over <-chan struct{}) error {
	select {
	case <-over:
	case <-c.s.dead:
	case <-ctx.Done():
		select {
		case <-over: // in the same moment
		default:
			return fmt.Errorf("%s consumer %q: %w", verb, c.tag, ctx.Err())
		}
	}
	if err := c.s.Err(); err != nil {
		return fmt.Errorf("%s consumer %q: %w", verb, c.tag, err)
	}
	return nil
}

// finish sets the reason why the consumer ends, unless it is already set. From then on no subscription begins.
func (c *consumer) finish(reason error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return false
	}
	c.ending, c.err = true, reason
	return true
}

// end marks the consumer as over, once, after finish and the last delivery. Deliveries that nobody received are given
// back. If the lane is lost, the broker does that, and they stay in the channel for the receiver to know. It waits for
// calls and subscriptions, which end with their channel.
func (c *consumer) end() {
	c.ended.Do(func() {
		// The previous holder of the turn may have begun a subscription. No later one does.
		_ = c.calling.take(context.Background(), nil)
		c.calling.give()
		c.pumps.Wait()
		for drained := c.takenAway(); !drained; {
			select { // a receiver may be emptying it at the same time
			case d := <-c.deliveries:
				_ = d.Release()
			default:
				drained = true
			}
		}
		c.s.freeTag(c.tag)
		close(c.deliveries)
		close(c.done)
		c.retire()
	})
}
