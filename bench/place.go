package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The kinds of queues, as ServerConfig.QueueType has them.
const (
	classic = ""
	quorum  = "quorum"
)

// place is an exchange and the queues bound to it. Only one measurement uses them.
type place struct {
	name string   // of the exchange
	keys []string // the queues' names and their binding keys
	kind string
	ch   *amqp.Channel
}

// key returns the key of the only queue, or of the first.
func (p *place) key() string { return p.keys[0] }

// place declares an exchange with queues, as the library does, and has them deleted after the measurement.
func (m *measurement) place(kind string, queues int) (*place, error) {
	ch, err := m.rabbit.Channel()
	if err != nil {
		return nil, err
	}
	p := &place{name: "dispatcher.bench." + rand.Text(), kind: kind, ch: ch}
	m.cleanup(p.remove)
	var args amqp.Table
	if kind == quorum {
		args = amqp.Table{"x-queue-type": "quorum", "x-delivery-limit": int64(1<<31 - 1)}
	}
	if err := ch.ExchangeDeclare(p.name, "direct", true, false, false, false, nil); err != nil {
		return nil, err
	}
	for i := range queues {
		key := p.name + "." + strconv.Itoa(i)
		p.keys = append(p.keys, key)
		if _, err := ch.QueueDeclare(key, true, false, false, false, args); err != nil {
			return nil, err
		}
		if err := ch.QueueBind(key, key, p.name, false, nil); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// holds checks how many messages are in the queues while nobody consumes them.
func (p *place) holds(want int) error {
	have := 0
	for _, key := range p.keys {
		q, err := p.ch.QueueDeclarePassive(key, true, false, false, false, nil)
		if err != nil {
			return err
		}
		have += q.Messages
	}
	if have != want {
		return fmt.Errorf("%d messages in the queues, not %d", have, want)
	}
	return nil
}

func (p *place) remove() error {
	var errs []error
	for _, key := range p.keys {
		for _, q := range []string{key, key + ".dead", key + ".suspects"} {
			_, err := p.ch.QueueDelete(q, false, false, false)
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, p.ch.ExchangeDelete(p.name, false, false), p.ch.Close())...)
}
