package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// onChannel calls f with a channel of its own connection.
func onChannel(url string, f func(ch *amqp.Channel) error) error {
	conn, err := amqp.Dial(url)
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := f(ch); err != nil {
		return err
	}
	return conn.Close()
}

// byHand publishes ready-made bodies, persistent and confirmed.
type byHand struct {
	goroutines int  // that share a channel
	window     int  // how many publishes of a goroutine may wait for their confirms
	flags      bool // mandatory, and the properties that the library sets
}

func (h byHand) publish(m *measurement) error {
	p, err := m.place(classic, 1)
	if err != nil {
		return err
	}
	if err := h.fill(m, p); err != nil {
		return err
	}
	return p.holds(m.n)
}

// fill publishes the tasks of the measurement and measures that.
func (h byHand) fill(m *measurement, p *place) error {
	bodies, err := encoded(m.n)
	if err != nil {
		return err
	}
	return onChannel(m.url, func(ch *amqp.Channel) error {
		if err := ch.Confirm(false); err != nil {
			return err
		}
		var returned atomic.Int64
		if h.flags {
			returns := ch.NotifyReturn(make(chan amqp.Return, 1))
			go func() { // ends with the channel
				for range returns {
					returned.Add(1)
				}
			}()
		}
		m.begin()
		var all sync.WaitGroup
		errs := make([]error, h.goroutines)
		for i := range h.goroutines {
			part := bodies[i*m.n/h.goroutines : (i+1)*m.n/h.goroutines]
			all.Go(func() { errs[i] = h.send(m.ctx, ch, p, part) })
		}
		all.Wait()
		m.end()
		if n := returned.Load(); n > 0 {
			return fmt.Errorf("%d tasks were returned", n)
		}
		return errors.Join(errs...)
	})
}

// send publishes the bodies and waits for all confirms.
func (h byHand) send(ctx context.Context, ch *amqp.Channel, p *place, bodies []body) error {
	inFlight := make([]*amqp.DeferredConfirmation, h.window)
	for i := range len(bodies) + h.window {
		if oldest := inFlight[i%h.window]; oldest != nil {
			if ok, err := oldest.WaitContext(ctx); err != nil || !ok {
				return errors.Join(fmt.Errorf("publish %d was not confirmed", i-h.window), err)
			}
		}
		if i >= len(bodies) {
			inFlight[i%h.window] = nil
			continue
		}
		msg := amqp.Publishing{ContentType: "application/json", DeliveryMode: amqp.Persistent, Body: bodies[i].json}
		if h.flags {
			msg.MessageId, msg.Type, msg.Timestamp = bodies[i].id, taskName, time.Now()
		}
		var err error
		if inFlight[i%h.window], err = ch.PublishWithDeferredConfirm(p.name, p.key(), h.flags, false, msg); err != nil {
			return err
		}
	}
	return nil
}

// pipelined publishes as fast as one goroutine can.
var pipelined = byHand{goroutines: 1, window: 1000}
