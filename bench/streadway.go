package main

import (
	"errors"
	"time"

	"github.com/streadway/amqp"
)

// onStreadwayChannel calls f with a channel of its own connection.
func onStreadwayChannel(url string, f func(ch *amqp.Channel) error) error {
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

// publishWithStreadway publishes ready-made bodies in one goroutine. At most window publishes wait for their confirms.
func publishWithStreadway(window int) func(*measurement) error {
	return func(m *measurement) error {
		p, err := m.place(classic, 1)
		if err != nil {
			return err
		}
		bodies, err := encoded(m.n)
		if err != nil {
			return err
		}
		err = onStreadwayChannel(m.url, func(ch *amqp.Channel) error {
			if err := ch.Confirm(false); err != nil {
				return err
			}
			confirms := ch.NotifyPublish(make(chan amqp.Confirmation, window))
			m.begin()
			for i := range m.n + window {
				if i >= window {
					if c, err := receive(m.ctx, confirms); err != nil || !c.Ack {
						return errors.Join(errors.New("a publish was not confirmed"), err)
					}
				}
				if i >= m.n {
					continue
				}
				err := ch.Publish(p.name, p.key(), false, false,
					amqp.Publishing{ContentType: "application/json", DeliveryMode: amqp.Persistent, Body: bodies[i].json})
				if err != nil {
					return err
				}
			}
			m.end()
			return nil
		})
		return errors.Join(err, p.holds(m.n))
	}
}

// drainWithStreadway acks in groups of 100 and decodes nothing.
func drainWithStreadway(m *measurement) error {
	p, err := m.place(classic, 1)
	if err != nil {
		return err
	}
	if err := pipelined.fill(m, p); err != nil {
		return err
	}
	m.settle()
	err = onStreadwayChannel(m.url, func(ch *amqp.Channel) error {
		if err := ch.Qos(1000, 0, false); err != nil {
			return err
		}
		m.begin()
		deliveries, err := ch.Consume(p.key(), "", false, false, false, false, nil)
		if err != nil {
			return err
		}
		var first time.Time
		for i := range m.n {
			d, err := receive(m.ctx, deliveries)
			if err != nil {
				return err
			}
			if i == 0 {
				first = time.Now()
			}
			if (i+1)%100 == 0 || i+1 == m.n {
				if err := d.Ack(true); err != nil {
					return err
				}
			}
		}
		m.span = time.Since(first)
		return nil
	})
	if err != nil {
		return err
	}
	m.end()
	return p.holds(0)
}
