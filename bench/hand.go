package main

import (
	"encoding/json"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
)

// window is how many publishes may wait for their confirmation.
const window = 1000

// onChannel calls f with a channel of its own connection.
func onChannel(p *place, f func(ch *amqp.Channel) error) error {
	conn, err := amqp.Dial(p.url)
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

// publishByHand publishes ready-made bodies, persistent and confirmed, and does nothing else that costs time.
func publishByHand(p *place, n int) (rate float64, err error) {
	if rate, err = fill(p, n); err != nil {
		return 0, err
	}
	return rate, p.purge()
}

// fill publishes n tasks and leaves them in the queue.
func fill(p *place, n int) (rate float64, err error) {
	bodies, err := handBodies(n)
	if err != nil {
		return 0, err
	}
	err = onChannel(p, func(ch *amqp.Channel) error {
		if err := ch.Confirm(false); err != nil {
			return err
		}
		began := time.Now()
		var inFlight [window]*amqp.DeferredConfirmation
		for i := range n + window {
			if oldest := inFlight[i%window]; oldest != nil && !oldest.Wait() {
				return fmt.Errorf("publish %d was not confirmed", i-window)
			}
			if i >= n {
				continue
			}
			inFlight[i%window], err = ch.PublishWithDeferredConfirm(p.name, p.name, false, false,
				amqp.Publishing{ContentType: "application/json", DeliveryMode: amqp.Persistent, Body: bodies[i]})
			if err != nil {
				return err
			}
		}
		rate = perSecond(n, began)
		return nil
	})
	return rate, err
}

// handBodies returns n tasks as the library would encode them. Each has a uuid of its own, because a worker does not
// run two tasks with the same uuid at once.
func handBodies(n int) ([][]byte, error) {
	bodies := make([][]byte, n)
	for i := range bodies {
		task := newTask()
		task.UUID = fmt.Sprintf("00000000-0000-4000-8000-%012d", i)
		body, err := json.Marshal(task)
		if err == nil && len(body) != bodyBytes {
			err = fmt.Errorf("the body has %d bytes, not %d: %s", len(body), bodyBytes, body)
		}
		if err != nil {
			return nil, err
		}
		bodies[i] = body
	}
	return bodies, nil
}

// drainByHand receives one message after another and acks them in groups of the given size. It does nothing else, not
// even decode.
func drainByHand(prefetch, group int) func(p *place, n int) (rate float64, err error) {
	return func(p *place, n int) (rate float64, err error) {
		if _, err := fill(p, n); err != nil {
			return 0, err
		}
		err = onChannel(p, func(ch *amqp.Channel) error {
			if err := ch.Qos(prefetch, 0, false); err != nil {
				return err
			}
			deliveries, err := ch.Consume(p.name, "", false, false, false, false, nil)
			if err != nil {
				return err
			}
			var began time.Time
			for i := range n {
				d, ok := <-deliveries
				if !ok {
					return fmt.Errorf("the consumer ended after %d of %d", i, n)
				}
				if i == 0 {
					began = time.Now()
				}
				if (i+1)%group != 0 && i+1 < n {
					continue
				}
				if err := d.Ack(group > 1); err != nil {
					return err
				}
			}
			rate = perSecond(n-1, began)
			return nil
		})
		if err != nil {
			return 0, err
		}
		return rate, p.holds(0)
	}
}

func perSecond(n int, began time.Time) float64 { return float64(n) / time.Since(began).Seconds() }

// newTask makes the task that every program publishes. Its arguments are a string and a number.
func newTask() *dispatcher.Task { return dispatcher.NewTask("bench", text, 42) }
