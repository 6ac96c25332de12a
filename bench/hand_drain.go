package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// drainByHand receives one message after another in one goroutine.
type drainByHand struct {
	kind     string
	prefetch int
	group    int  // how many messages one ack settles
	decode   bool // with encoding/json
}

func (h drainByHand) run(m *measurement) error {
	p, err := m.place(h.kind, 1)
	if err != nil {
		return err
	}
	if err := pipelined.fill(m, p); err != nil {
		return err
	}
	m.settle()
	err = onChannel(m.url, func(ch *amqp.Channel) error {
		if err := ch.Qos(h.prefetch, 0, false); err != nil {
			return err
		}
		m.begin()
		deliveries, err := ch.Consume(p.key(), "", false, false, false, false, nil)
		if err != nil {
			return err
		}
		return h.receive(m, deliveries)
	})
	if err != nil {
		return err
	}
	m.end()
	return p.holds(0)
}

func (h drainByHand) receive(m *measurement, deliveries <-chan amqp.Delivery) error {
	var first time.Time
	for i := range m.n {
		d, err := receive(m.ctx, deliveries)
		if err != nil {
			return fmt.Errorf("after %d tasks: %w", i, err)
		}
		if i == 0 {
			first = time.Now()
		}
		if h.decode {
			if err := decode(d.Body); err != nil {
				return err
			}
		}
		if (i+1)%h.group != 0 && i+1 < m.n {
			continue
		}
		if err := d.Ack(h.group > 1); err != nil {
			return err
		}
	}
	m.span = time.Since(first)
	return nil
}

func receive[D any](ctx context.Context, deliveries <-chan D) (D, error) {
	select {
	case d, ok := <-deliveries:
		if !ok {
			return d, errors.New("the consumer ended")
		}
		return d, nil
	case <-ctx.Done():
		var none D
		return none, ctx.Err()
	}
}

// latencyByHand publishes one task at a time, and decodes and acks it in another goroutine.
func latencyByHand(m *measurement) error {
	p, err := m.place(classic, 1)
	if err != nil {
		return err
	}
	bodies, err := encoded(m.n)
	if err != nil {
		return err
	}
	return onChannel(m.url, func(in *amqp.Channel) error {
		if err := in.Qos(10, 0, false); err != nil {
			return err
		}
		deliveries, err := in.Consume(p.key(), "", false, false, false, false, nil)
		if err != nil {
			return err
		}
		handled := make(chan int64, 1)
		go func() { // ends with the channel
			for d := range deliveries {
				if decode(d.Body) == nil {
					handled <- now()
				}
				d.Ack(false) // an error ends the channel, and so the measurement
			}
		}()
		return onChannel(m.url, func(out *amqp.Channel) error {
			if err := out.Confirm(false); err != nil {
				return err
			}
			one := byHand{goroutines: 1, window: 1}
			return m.oneAtATime(handled, func(i int) error { return one.send(m.ctx, out, p, bodies[i:i+1]) })
		})
	})
}

// oneAtATime publishes tasks, each after the one before was handled, for at most two seconds. A handler sends the time
// at which it was called.
func (m *measurement) oneAtATime(handled <-chan int64, publish func(i int) error) error {
	m.begin()
	for m.did < m.n && time.Since(m.atBegin.at) < 2*time.Second {
		called := now()
		if err := publish(m.did); err != nil {
			return err
		}
		at, err := receive(m.ctx, handled)
		if err != nil {
			return err
		}
		m.latencies = append(m.latencies, time.Duration(at-called))
		m.did++
	}
	m.end()
	return nil
}
