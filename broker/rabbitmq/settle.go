package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// delivery implements [broker.Settler].
type delivery struct {
	lane    *lane
	from    *subscription // nil for TryGet
	tag     uint64
	settled bool // or being settled; guarded by lane.mu
}

// take claims the right to settle. The caller holds lane.mu.
func (d *delivery) take() error {
	switch {
	case d.settled:
		return broker.ErrSettled
	case d.lane.gone != nil:
		return d.lostError()
	}
	d.settled = true
	return nil
}

func (d *delivery) lostError() error {
	return fmt.Errorf("%w: %w", broker.ErrDeliveryLost, d.lane.gone)
}

// Ack implements [broker.Settler].
func (d *delivery) Ack() error { return d.settle(false) }

// Release implements [broker.Settler].
func (d *delivery) Release() error { return d.settle(true) }

func (d *delivery) settle(release bool) error {
	l := d.lane
	l.mu.Lock()
	err := d.take()
	if err == nil {
		l.settle(settlement{tag: d.tag, release: release, from: d.from})
	}
	l.mu.Unlock()
	if err == nil {
		l.poke()
	}
	return err
}

// Retry implements [broker.Settler].
func (d *delivery) Retry(ctx context.Context, m broker.Message, delay time.Duration) error {
	return d.forward(ctx, "", &m, delay)
}

// Suspect implements [broker.Settler].
func (d *delivery) Suspect(ctx context.Context, m broker.Message) error {
	return d.forward(ctx, broker.SuspectsSuffix, &m, 0)
}

// DeadLetter implements [broker.Settler].
func (d *delivery) DeadLetter(ctx context.Context, m broker.Message) error {
	return d.forward(ctx, broker.DeadSuffix, &m, 0)
}

// forward publishes m to the queue with that suffix and then acks the delivery. A crash between the two leaves both
// messages, never neither.
func (d *delivery) forward(ctx context.Context, suffix string, m *broker.Message, delay time.Duration) error {
	l := d.lane
	l.mu.Lock()
	err := d.take()
	l.mu.Unlock()
	if err != nil {
		return err
	}
	m.Exchange, m.RoutingKey, m.NotBefore = "", broker.Owner(l.queue)+suffix, time.Time{}
	if delay > 0 {
		m.NotBefore = time.Now().Add(delay)
		err = l.s.allowRetry(ctx, m.RoutingKey, delay)
	}
	if err == nil {
		err = l.s.publish.confirm(ctx, m)
	}
	written := make(chan struct{})
	l.mu.Lock()
	switch {
	case l.gone != nil && err == nil:
		err = d.lostError() // both messages are there now
		d.settled = false
	case l.gone != nil:
		err = fmt.Errorf("%w: %w", d.lostError(), err)
		d.settled = false
	case err != nil:
		d.settled = false
	default:
		l.settle(settlement{tag: d.tag, from: d.from, written: written})
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	l.poke()
	// The copy may run at once and end this process. The ack should be on its way by then, or both messages would be
	// there.
	select {
	case <-written:
	case <-l.flushed:
	case <-ctx.Done():
	}
	return nil
}

// allowRetry checks what a delayed retry needs in addition to its publish.
func (s *session) allowRetry(ctx context.Context, queue string, delay time.Duration) error {
	if !s.can.Delay {
		return fmt.Errorf("delayed retry: %w: %w", broker.ErrRejected, errors.ErrUnsupported)
	}
	if err := checkDelay(delay); err != nil {
		return err
	}
	if err := s.bindRetries(ctx, queue); err != nil {
		return s.publish.unprepared(err)
	}
	return nil
}

// Lost implements [broker.Settler]. The deliveries of a consumer, or of one TryGet, share the channel.
func (d *delivery) Lost() <-chan struct{} { return d.lane.lost }
