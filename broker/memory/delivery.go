package memory

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// owner is a consumer or one call of TryGet, with its deliveries. Broker.mu guards it.
type owner struct {
	session   *session
	queue     *queue
	consumer  *consumer       // while it is live; nil for TryGet
	unsettled list[*delivery] // handed out, still in the channel or received
	lost      chan struct{}   // closed when gone is set
	gone      error           // why its deliveries can no longer be settled
}

// giveBack returns a delivery to the queue without a charge.
func (o *owner) giveBack(d *delivery) {
	o.unsettled.remove(&d.links)
	o.queue.unsettled--
	o.queue.putBack(d.entry)
}

// lose ends the right to settle, and gives back and charges all open deliveries. It is called after halt, so all of
// them were received. The caller dispatches.
func (o *owner) lose(reason error) {
	if o.gone != nil {
		return
	}
	o.gone = reason
	for l := o.unsettled.first; l != nil; {
		d := l.self
		l = l.next
		if d.state.CompareAndSwap(open, lost) { // otherwise it was acked a moment ago
			d.entry.losses++
			o.giveBack(d)
		}
	}
	close(o.lost)
	o.retire()
}

// retire makes the session forget the owner once it has nothing to settle and will get nothing more.
func (o *owner) retire() {
	if o.consumer == nil && o.unsettled.len == 0 {
		delete(o.session.owners, o)
	}
}

// delivery implements [broker.Settler]. Each time an entry is handed out it gets a new delivery, which fences off the
// earlier ones. Broker.mu guards all but owner and entry, which are set once, and state.
type delivery struct {
	links[*delivery] // in owner.unsettled
	owner            *owner
	entry            *entry
	state            atomic.Int32 // deliveryState; it leaves open once, which settles the delivery
	ackedBefore      *delivery    // in lock.acked
}

// deliveryState is whether a delivery can be settled.
type deliveryState = int32

const (
	open    deliveryState = iota
	settled               // leave follows
	lost                  // owner.gone says why
)

// check returns the reason why the delivery cannot be settled, or nil.
func (d *delivery) check() error {
	switch d.state.Load() {
	case settled:
		return broker.ErrSettled
	case lost:
		return fmt.Errorf("%w: %w", broker.ErrDeliveryLost, d.owner.gone)
	}
	return nil
}

// settle takes the right to settle the delivery, or returns the reason why it cannot be settled.
func (d *delivery) settle() error {
	if !d.state.CompareAndSwap(open, settled) {
		return d.check()
	}
	return nil
}

// leave removes a settled delivery from its owner and the queue's count. The caller dispatches.
func (d *delivery) leave() {
	o := d.owner
	o.unsettled.remove(&d.links)
	o.queue.unsettled--
	if o.queue.empty() {
		o.session.broker.signal()
	}
	if o.consumer != nil {
		o.queue.seat(o.consumer)
	} else {
		o.retire()
	}
}

// Ack implements [broker.Settler]. When it returns nil, the message is acknowledged. It does not wait for the lock.
func (d *delivery) Ack() error {
	if err := d.settle(); err != nil {
		return err
	}
	d.owner.session.broker.mu.ack(d)
	return nil
}

// Release implements [broker.Settler]. The message returns to exactly the place it had.
func (d *delivery) Release() error {
	b := d.owner.session.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := d.settle(); err != nil {
		return err
	}
	d.leave()
	d.owner.queue.putBack(d.entry)
	d.owner.queue.dispatch()
	return nil
}

// Retry implements [broker.Settler]. It does not block and happens in one step.
func (d *delivery) Retry(ctx context.Context, m broker.Message, delay time.Duration) error {
	return d.forward(ctx, "", m, delay)
}

// Suspect implements [broker.Settler]. It does not block and happens in one step.
func (d *delivery) Suspect(ctx context.Context, m broker.Message) error {
	return d.forward(ctx, broker.SuspectsSuffix, m, 0)
}

// DeadLetter implements [broker.Settler]. It does not block and happens in one step.
func (d *delivery) DeadLetter(ctx context.Context, m broker.Message) error {
	return d.forward(ctx, broker.DeadSuffix, m, 0)
}

// forward settles d and puts m into the queue with that suffix. It finds the queue by name: if the queue was deleted
// and declared again, m goes to the new one.
func (d *delivery) forward(ctx context.Context, suffix string, m broker.Message, delay time.Duration) error {
	ended := ctx.Err() // before the lock: a context may be anybody's code
	name := broker.Owner(d.owner.queue.name) + suffix
	m.Exchange, m.RoutingKey = "", name
	b := d.owner.session.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := d.check(); err != nil {
		return err
	}
	if ended != nil {
		return ended
	}
	if delay > broker.MaxDelay {
		return fmt.Errorf("due in %v, the maximum is %v: %w", delay, broker.MaxDelay, broker.ErrRejected)
	}
	target := b.queues[name]
	if target == nil {
		return fmt.Errorf("queue %q: %w", name, broker.ErrUnroutable)
	}
	if err := checkMessage(&m); err != nil {
		return err
	}
	if err := d.settle(); err != nil {
		return err
	}
	if delay > 0 {
		b.delay(m, time.Now(), delay)
	} else {
		target.push(&m)
	}
	d.leave()
	target.dispatch()
	d.owner.queue.dispatch()
	return nil
}

// Lost implements [broker.Settler]. All deliveries of a consumer or of one TryGet, even settled ones, share it.
func (d *delivery) Lost() <-chan struct{} { return d.owner.lost }
