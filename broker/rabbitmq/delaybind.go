package rabbitmq

import (
	"context"
	"errors"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// rebindTime is how long a retry waits for the renewal of a binding that existed a while ago. RabbitMQ does not answer
// queue.bind while a node of its cluster hangs.
const rebindTime = time.Second

// bindTurn is the turn that all bindings take: see session.admin. RabbitMQ asks no queue to bind it, so an unanswered
// binding must not hold up calls on its queue. The next binding would go unanswered too, and would occupy another
// channel.
const bindTurn = deliverExchange

// target returns the target by which the deliver exchange knows a message to an exchange, or a binding of it. Every
// binding of a fanout exchange takes every key, so keys are left out for one. Both sides can do that only if their
// sessions have declared the exchange.
func (d *delays) target(exchange, key string) target {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.fanouts[exchange]; ok {
		key = ""
	}
	return target{exchange, key}
}

// noteExchange remembers the kind of an exchange.
func (d *delays) noteExchange(x broker.Exchange) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if x.Kind == broker.Fanout {
		if d.fanouts == nil {
			d.fanouts = make(map[string]struct{})
		}
		d.fanouts[x.Name] = struct{}{}
	} else {
		delete(d.fanouts, x.Name)
	}
}

// takesRetries reports whether a queue is bound by its name when it is declared. Messages of other queues are hardly
// ever retried.
func takesRetries(queue string) bool {
	return queue != broker.Undeliverable &&
		!strings.HasSuffix(queue, broker.DeadSuffix) &&
		!strings.HasSuffix(queue, broker.SuspectsSuffix)
}

// due is a binding to the deliver exchange.
type due struct{ queue, word string }

func (s *session) due(queue, exchange, key string) due {
	return due{queue, s.delays.target(exchange, key).word()}
}

// bindDelays binds the queues of a topology to the messages that are due for them. Each durable queue that is worked on
// gets its retries, and the queue of each binding gets the messages published for that binding.
func (s *session) bindDelays(ctx context.Context, t broker.Topology) error {
	if !s.can.Delay {
		return nil
	}
	var dues []due
	for _, q := range t.Queues {
		switch {
		case q.Ephemeral: // the queue of a former session took its bindings with it
			s.delays.memory.forgetBindings(q.Name)
		case takesRetries(q.Name):
			dues = append(dues, s.due(q.Name, "", q.Name))
		}
	}
	for _, b := range t.Bindings {
		dues = append(dues, s.due(b.Queue, b.Exchange, b.Key))
	}
	return s.bindDues(ctx, dues, bindQueue)
}

// bindDues binds queues to the deliver exchange.
func (s *session) bindDues(ctx context.Context, dues []due, op operation) error {
	if len(dues) == 0 {
		return nil
	}
	var binds []step
	for _, d := range dues {
		bind := stepBind(d.queue, deliverPattern(d.word), deliverExchange)
		bind.op = op
		binds = append(binds, bind)
	}
	if err := s.withBase(ctx, func() error { return s.inOneGo(ctx, bindTurn, binds) }); err != nil {
		return explained(err)
	}
	for _, d := range dues {
		s.delays.memory.noteBound(d.queue, d.word)
	}
	return nil
}

// bindRetries makes sure that a delayed retry finds its way back to its queue, which another program may have declared.
// Ephemeral and dead letter queues are bound here too. If the queue was bound a while ago and RabbitMQ does not answer,
// the retry goes on: most likely the binding still exists, and if it does not, it is made once RabbitMQ answers.
func (s *session) bindRetries(ctx context.Context, queue string) error {
	needed, old := s.delays.memory.needsBinding(queue, time.Now())
	if !needed {
		return nil
	}
	op := bindQueue
	op.missing = broker.ErrUnroutable
	bounded, cancel := ctx, func() {}
	if old {
		bounded, cancel = context.WithTimeout(ctx, rebindTime)
	}
	defer cancel()
	err := s.bindDues(bounded, []due{s.due(queue, "", queue)}, op)
	switch {
	case err == nil, ctx.Err() != nil, s.Err() != nil: // the latter two say nothing about the binding
		return err
	case old && errors.Is(err, context.DeadlineExceeded):
		return nil
	}
	s.delays.memory.doubt(queue)
	return err
}

// passingOn is how long an exit may still pass on messages to a queue that was unbound. The exit found the route
// before, and waits for the queue's confirmation.
const passingOn = 100 * time.Millisecond

// unbindDelays stops due messages from reaching a queue that is about to be deleted. A message that is being passed on
// when its queue is deleted occupies a place of its exit for minutes. Bindings that cannot be removed end with the
// queue.
func (s *session) unbindDelays(ctx context.Context, queue string) {
	words := s.delays.memory.forgetBindings(queue)
	if !s.can.Delay || !takesRetries(queue) {
		return
	}
	words = append(words, target{key: queue}.word())
	if s.admin(ctx, bindTurn, func(ch *amqp.Channel) error {
		for _, word := range words {
			if err := ch.QueueUnbind(queue, deliverPattern(word), deliverExchange, nil); err != nil {
				return err
			}
		}
		return nil
	}) != nil {
		return
	}
	select {
	case <-time.After(passingOn): // RabbitMQ has no signal for it
	case <-ctx.Done():
	case <-s.dead:
	}
}
