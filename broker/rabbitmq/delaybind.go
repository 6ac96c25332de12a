package rabbitmq

import (
	"context"
	"errors"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// bindingAge is how long a session relies on a binding that it has made. Another program may delete the queue and declare it again
// without the binding, and no session notices. Binding again is one round trip and changes nothing.
const bindingAge = 30 * time.Second

// bound holds a queue's known bindings to the deliver exchange.
type bound struct {
	words map[string]struct{} // of the targets that it takes
	named time.Time           // when it was last bound by its name, as retries need it; zero = it is not known to be
}

// target is what a message to an exchange, or a binding of it, is known by at the deliver exchange. Every binding of a fanout
// exchange takes every key, so keys are left out, which both sides can do only if their sessions have declared the exchange.
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

// noteBound remembers that a queue takes what is due for a word.
func (d *delays) noteBound(queue, word string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.bound[queue]
	if b == nil {
		if d.bound == nil {
			d.bound = make(map[string]*bound)
		}
		b = &bound{words: make(map[string]struct{})}
		d.bound[queue] = b
	}
	b.words[word] = struct{}{}
	if word == (target{key: queue}).word() {
		b.named = time.Now()
	}
}

// needsBinding reports whether the caller has to bind a queue for retries. When a binding is too old, only the first caller has to.
func (d *delays) needsBinding(queue string, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.bound[queue]
	if b == nil || b.named.IsZero() {
		return true
	}
	if now.Sub(b.named) < bindingAge {
		return false
	}
	b.named = now
	return true
}

// doubt has the queue bound again before the next retry.
func (d *delays) doubt(queue string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if b := d.bound[queue]; b != nil {
		b.named = time.Time{}
	}
}

// forgetBindings forgets a queue and returns the words it was bound for.
func (d *delays) forgetBindings(queue string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var words []string
	if b := d.bound[queue]; b != nil {
		for word := range b.words {
			words = append(words, word)
		}
	}
	delete(d.bound, queue)
	return words
}

// takesRetries reports whether a queue is bound by its name when it is declared. Hardly any message is retried in the others.
func takesRetries(queue string) bool {
	return queue != broker.Undeliverable && !strings.HasSuffix(queue, broker.DeadSuffix) && !strings.HasSuffix(queue, broker.SuspectsSuffix)
}

// due is a binding to the deliver exchange.
type due struct{ queue, word string }

func (s *session) due(queue, exchange, key string) due {
	return due{queue, s.delays.target(exchange, key).word()}
}

// bindDelays gives the queues of a topology what is due for them: what is retried, for each durable queue that is worked on, and
// what is published, for each binding.
func (s *session) bindDelays(ctx context.Context, t broker.Topology) error {
	if !s.can.Delay {
		return nil
	}
	var dues []due
	for _, q := range t.Queues {
		if !q.Ephemeral && takesRetries(q.Name) {
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
	base, err := s.declareBase(ctx)
	if err != nil {
		return err
	}
	var binds []step
	for _, d := range dues {
		bind := stepBind(d.queue, deliverPattern(d.word), deliverExchange)
		bind.op = op
		binds = append(binds, bind)
	}
	err = s.inOneGo(ctx, binds)
	if e, ok := errors.AsType[*amqp.Error](err); ok && e.Code == amqp.NotFound && !absent(e) {
		s.delays.base.forget(base) // perhaps it is that what is missing: the next call makes it
	}
	if err != nil {
		return explained(err)
	}
	for _, d := range dues {
		s.delays.noteBound(d.queue, d.word)
	}
	return nil
}

// bindRetries makes sure that a delayed retry finds back to its queue, which somebody else may have declared. Ephemeral and dead
// letter queues are bound here too.
func (s *session) bindRetries(ctx context.Context, queue string) error {
	if !s.delays.needsBinding(queue, time.Now()) {
		return nil
	}
	op := bindQueue
	op.missing = broker.ErrUnroutable
	err := s.bindDues(ctx, []due{s.due(queue, "", queue)}, op)
	if err != nil {
		s.delays.doubt(queue)
	}
	return err
}

// passingOn is how long an exit may still pass on messages to a queue after it was unbound: it found the route before, and waits for the
// queue's confirmation.
const passingOn = 100 * time.Millisecond

// unbindDelays keeps due messages from a queue that is about to be deleted. A message that is being passed on when its queue is deleted
// keeps a place of its exit for minutes. Bindings that cannot be removed end with the queue.
func (s *session) unbindDelays(ctx context.Context, queue string) {
	words := s.delays.forgetBindings(queue)
	if !s.can.Delay || !takesRetries(queue) {
		return
	}
	words = append(words, target{key: queue}.word())
	if s.admin(ctx, queue, func(ch *amqp.Channel) error {
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
