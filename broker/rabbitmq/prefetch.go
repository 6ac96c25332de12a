package rabbitmq

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// subscription is one consumer as the broker sees it. It is guarded by lane.mu.
type subscription struct {
	tag       string
	prefetch  int
	open      int  // unsettled
	cancelled bool // by us
	ended     bool // nothing more comes

	pumped chan struct{} // closed when all of its deliveries are in the channel
}

// SetPrefetch implements [broker.Consumer]. Lowering takes a round trip or two, during which nothing is delivered.
func (c *consumer) SetPrefetch(ctx context.Context, n int) error {
	if err := c.setPrefetch(ctx, n); err != nil {
		return fmt.Errorf("set prefetch of consumer %q: %w", c.tag, err)
	}
	return nil
}

func (c *consumer) setPrefetch(ctx context.Context, n int) error {
	if n < 0 || n > cap(c.deliveries) {
		return fmt.Errorf("%d is not between 0 and %d: %w", n, cap(c.deliveries), broker.ErrRejected)
	}
	c.mu.Lock()
	err := c.gone
	if err == nil && c.ending {
		err = broker.ErrClosed
	}
	if err == nil && ctx.Err() == nil {
		c.limit = n
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = call(ctx, c.s, func() (struct{}, error) {
		if err := c.calling.take(context.Background(), c.lost); err != nil {
			return struct{}{}, broker.ErrClosed
		}
		defer c.calling.give()
		room := c.room()
		if room < 0 || c.crowded() {
			if err := c.cancelQuietly(); err != nil {
				return struct{}{}, err
			}
			room = c.room()
		}
		if room > 0 && !(c.ordered && c.live()) {
			return struct{}{}, c.subscribe(room)
		}
		return struct{}{}, nil
	}, nil)
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone != nil {
		return c.gone
	}
	return refused(readQueue, err)
}

// cancelQuietly ends all live subscriptions while nothing is on its way. A quorum queue takes back what is on its way
// when a subscription is cancelled, and marks that like a lost delivery (3.10.8, measured). The caller has the turn to
// call.
func (c *consumer) cancelQuietly() error {
	// Without acks the subscriptions become full, or the queue empty.
	if err := c.writing.take(context.Background(), c.lost); err != nil {
		return err
	}
	defer c.writing.give()
	ctx, cancel := context.WithTimeout(context.Background(), quietTime)
	defer cancel()
	for !c.full() {
		// The answer comes after all that was handed out before it.
		if info, err := c.s.Inspect(ctx, c.queue); err != nil || info.Ready == 0 {
			break
		}
	}
	if err := c.cancel(); err != nil {
		return err
	}
	c.awaitPumps()
	return nil
}

// quietTime bounds the wait for a moment in which nothing is on its way.
const quietTime = 200 * time.Millisecond

// full reports whether no live subscription may receive anything.
func (c *consumer) full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sub := range c.subs {
		if !sub.ended && !sub.cancelled && sub.open < sub.prefetch {
			return false
		}
	}
	return true
}

// cancel ends all live subscriptions. Their deliveries stay valid. The caller has the turn to call.
func (c *consumer) cancel() error {
	c.mu.Lock()
	var live []string
	for _, sub := range c.subs {
		if !sub.ended && !sub.cancelled {
			sub.cancelled = true
			live = append(live, sub.tag)
		}
	}
	c.mu.Unlock()
	for _, tag := range live {
		if err := c.ch.Cancel(tag, false); err != nil {
			return err
		}
	}
	return nil
}

// awaitPumps waits until the deliveries of the subscriptions that were cancelled are in the channel. There is room for
// them, so that takes a moment.
func (c *consumer) awaitPumps() {
	var pumped []chan struct{}
	c.mu.Lock()
	for _, sub := range c.subs {
		if sub.cancelled {
			pumped = append(pumped, sub.pumped)
		}
	}
	c.mu.Unlock()
	for _, done := range pumped {
		select {
		case <-done:
		case <-c.lost:
			return
		}
	}
}

// subscribe begins a subscription. The caller has the lane's turn to call, or exclusive use of the lane.
func (c *consumer) subscribe(prefetch int) error {
	c.mu.Lock()
	c.subbed++
	sub := &subscription{tag: c.tag, prefetch: prefetch, pumped: make(chan struct{})}
	if c.subbed > 1 {
		suffix := "#" + strconv.Itoa(c.subbed)
		sub.tag = sub.tag[:min(len(sub.tag), maxName-len(suffix))] + suffix
	}
	c.subs = append(c.subs, sub)
	c.mu.Unlock()
	// The prefetch of a channel applies to each subscription that begins after it, separately.
	err := c.ch.Qos(prefetch, 0, false)
	var in <-chan amqp.Delivery
	if err == nil {
		in, err = c.ch.Consume(c.queue, sub.tag, false, false, false, false, nil)
	}
	if err != nil {
		return err
	}
	c.pumps.Add(1)
	c.s.goroutines.add()
	go c.pump(sub, in)
	return nil
}

// pump moves the deliveries of one subscription to the channel, which has room for all that the broker may send.
func (c *consumer) pump(sub *subscription, in <-chan amqp.Delivery) {
	defer c.s.goroutines.done()
	defer c.pumps.Done()
	for a := range in {
		d := c.handOut(&a, sub)
		select { // there is room, unless the receiver takes nothing and the limit was lowered more than once
		case c.deliveries <- d:
			continue
		default:
		}
		select {
		case c.deliveries <- d:
		case <-c.lost: // the broker delivers it again
		}
	}
	c.mu.Lock()
	sub.ended = true
	c.mu.Unlock()
	close(sub.pumped)
	c.poke() // there may be room for another subscription
}

// room returns how many deliveries may be handed out beyond those that the live subscriptions may take. Below 0, they
// may take too many.
func (c *consumer) room() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return 0
	}
	room, kept := c.limit, c.subs[:0]
	for _, sub := range c.subs {
		switch {
		case !sub.ended:
			room -= sub.prefetch
		case sub.open > 0:
			room -= sub.open
		default:
			continue
		}
		kept = append(kept, sub)
	}
	clear(c.subs[len(kept):])
	c.subs = kept
	return room
}

// fill uses the room that settlements have made. It runs on the lane's goroutine.
func (c *consumer) fill() {
	if c.room() <= 0 || c.ordered && c.live() {
		return
	}
	if err := c.calling.take(context.Background(), c.lost); err != nil {
		return
	}
	defer c.calling.give()
	// An error has closed the channel, and the lane is notified of that.
	if room := c.room(); room > 0 && !(c.ordered && c.live()) {
		_ = c.subscribe(room)
	}
}

// replace gives a consumer that keeps the order a subscription for all the room there is. It does so while the present
// one is full, so that nothing is on its way: before acks are written, on the lane's goroutine.
func (c *consumer) replace() {
	if !c.ordered || c.room() <= 0 {
		return
	}
	if err := c.calling.take(context.Background(), c.lost); err != nil {
		return
	}
	defer c.calling.give()
	c.mu.Lock()
	limit := c.limit
	c.mu.Unlock()
	if !c.live() || !c.full() || 2*c.room() < limit {
		return
	}
	if c.cancel() != nil {
		return
	}
	c.awaitPumps()
	if room := c.room(); room > 0 { // it may have been lowered meanwhile
		_ = c.subscribe(room)
	}
}

// miscounted returns by how much the broker's count of consumers is too high: it counts the subscriptions of this consumer,
// which may be none although it is not paused.
func (c *consumer) miscounted() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sub := range c.subs {
		if !sub.ended && !sub.cancelled {
			n++
		}
	}
	if c.limit > 0 && !c.ending {
		n--
	}
	return n
}

// crowded reports whether there are many live subscriptions, perhaps one for each settlement since the limit was lowered.
// A queue serves them several times as slowly as one.
func (c *consumer) crowded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	live := 0
	for _, sub := range c.subs {
		if !sub.ended {
			live++
		}
	}
	return live > 8
}

// live reports whether a subscription may receive something, now or later.
func (c *consumer) live() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.subs, func(sub *subscription) bool { return !sub.ended })
}
