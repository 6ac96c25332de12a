package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// quorum is the replicated kind of queue.
const quorum = "quorum"

// deliveryLimit is the delivery limit of quorum queues, which is as good as none. It is declared all the same. From 4.0
// on a queue without a limit drops a message after 20 returns, including requeues. Up to 3.13 a queue without a limit
// puts released messages at its end (measured on 3.10). The value is the same for every version, since a queue keeps
// its arguments when the broker is upgraded. -1, which means "none" from 4.0 on, is refused before.
const deliveryLimit = 1<<31 - 1

func checkQueue(name string) error {
	if name == "" {
		// RabbitMQ would choose a name, or use the queue that this channel declared last.
		return fmt.Errorf("empty queue name: %w", broker.ErrRejected)
	}
	return checkName("queue name", name)
}

// queueArguments returns all x-arguments that a queue is declared with. They are as few as possible, so that queues of
// other programs fit and operators' policies decide the rest. Every version from 3.10 on must accept them.
func queueArguments(kind string) (amqp.Table, error) {
	switch kind {
	case "":
		return nil, nil
	case quorum:
		return quorumArguments(), nil
	}
	return nil, fmt.Errorf("queue type %q: %w", kind, errors.ErrUnsupported)
}

func quorumArguments() amqp.Table {
	return amqp.Table{amqp.QueueTypeArg: quorum, "x-delivery-limit": int64(deliveryLimit)}
}

// Declare implements [broker.Session]. It also prepares the targets of delayed messages.
func (s *session) Declare(ctx context.Context, t broker.Topology) error {
	if err := s.alive(ctx); err != nil {
		return fmt.Errorf("declare topology: %w", err)
	}
	for _, x := range t.Exchanges {
		if err := s.declareExchange(ctx, x); err != nil {
			return fmt.Errorf("declare exchange %q: %w", x.Name, err)
		}
		s.delays.noteExchange(x)
	}
	s.noteRoutes(t)
	for _, q := range t.Queues {
		if err := s.declareQueue(ctx, q); err != nil {
			return fmt.Errorf("declare queue %q: %w", q.Name, err)
		}
	}
	for _, b := range t.Bindings {
		if err := s.bind(ctx, b); err != nil {
			return fmt.Errorf("bind queue %q to exchange %q with key %q: %w", b.Queue, b.Exchange, b.Key, err)
		}
	}
	if err := s.bindDelays(ctx, t); err != nil {
		return fmt.Errorf("prepare delays: %w", err)
	}
	return nil
}

// alive returns the error of the session or of ctx, for calls that have nothing to do.
func (s *session) alive(ctx context.Context) error {
	if err := s.Err(); err != nil {
		return err
	}
	return ctx.Err()
}

func (s *session) declareExchange(ctx context.Context, x broker.Exchange) error {
	if x.Name == "" {
		return fmt.Errorf("the default exchange always exists: %w", broker.ErrRejected)
	}
	if err := checkName("name", x.Name); err != nil {
		return err
	}
	if x.Kind != broker.Direct && x.Kind != broker.Fanout { // RabbitMQ ends the connection over a kind it does not know
		return fmt.Errorf("kind %q: %w", x.Kind, errors.ErrUnsupported)
	}
	err := s.admin(ctx, "", func(ch *amqp.Channel) error {
		return ch.ExchangeDeclare(x.Name, string(x.Kind), true, false, false, false, nil)
	})
	if mayNot(err) && s.admin(ctx, "", func(ch *amqp.Channel) error {
		return ch.ExchangeDeclarePassive(x.Name, string(x.Kind), true, false, false, false, nil)
	}) == nil {
		return nil
	}
	return refused(declareExchange, err)
}

// mayNot reports whether a declaration was refused for lack of the configure permission. Programs often lack it, and an
// operator declares their queues. Then it is enough that the queue or exchange exists, which every user may check up to
// 4.2.
func mayNot(err error) bool {
	e, ok := errors.AsType[*amqp.Error](err)
	return ok && e.Code == amqp.AccessRefused
}

func (s *session) declareQueue(ctx context.Context, q broker.QueueSpec) error {
	if err := checkQueue(q.Name); err != nil {
		return err
	}
	kind := q.Type
	switch {
	case q.Ephemeral && kind != "": // exclusive queues are classic
		return fmt.Errorf("ephemeral queue with type %q: %w", kind, errors.ErrUnsupported)
	case !q.Ephemeral && kind == "":
		kind = s.queueType
		// After a node was killed, a classic queue marks all its messages as redelivered (3.10.8, measured), and every
		// message that waits there would be charged with a loss that never happened. A quorum queue marks only messages
		// that were delivered.
		if strings.HasSuffix(q.Name, broker.SuspectsSuffix) && s.can.Delay {
			kind = quorum
		}
	}
	args, err := queueArguments(kind)
	if err != nil {
		return err
	}
	err = s.admin(ctx, q.Name, func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare(q.Name, !q.Ephemeral, false, q.Ephemeral, false, args)
		return err
	})
	if mayNot(err) && !q.Ephemeral {
		if _, looked := s.Inspect(ctx, q.Name); looked == nil {
			return nil
		}
	}
	err = refused(declareQueue, err)
	if errors.Is(err, broker.ErrLocked) {
		// RabbitMQ gives the same answer for a queue that another connection holds, and for one that is exclusive when
		// a shared one was requested, or the other way round. It refuses to inspect the queue in the first case only.
		if _, looked := s.Inspect(ctx, q.Name); looked == nil {
			return fmt.Errorf("it already exists with ephemeral %t, not %t: %w: delete it or use the same properties",
				!q.Ephemeral, q.Ephemeral, broker.ErrRejected)
		}
	}
	return err
}

func (s *session) bind(ctx context.Context, b broker.Binding) error {
	if b.Exchange == "" {
		return fmt.Errorf("the default exchange cannot have bindings: %w", broker.ErrRejected)
	}
	if err := checkQueue(b.Queue); err != nil {
		return err
	}
	if err := checkName("exchange", b.Exchange); err != nil {
		return err
	}
	if err := checkName("key", b.Key); err != nil {
		return err
	}
	return refused(bindQueue, s.admin(ctx, bindTurn, func(ch *amqp.Channel) error {
		return ch.QueueBind(b.Queue, b.Key, b.Exchange, false, nil)
	}))
}

// Inspect implements [broker.Session]. Over AMQP RabbitMQ does not report how many messages are unsettled. A classic
// queue counts before it carries out earlier commands.
func (s *session) Inspect(ctx context.Context, queue string) (broker.QueueInfo, error) {
	var q amqp.Queue
	err := checkQueue(queue)
	if err == nil {
		err = s.settled(ctx, queue)
	}
	if err == nil {
		err = refused(inspectQueue, s.admin(ctx, queue, func(ch *amqp.Channel) (err error) {
			q, err = ch.QueueDeclarePassive(queue, true, false, false, false, nil)
			return err
		}))
	}
	if err != nil {
		return broker.QueueInfo{}, fmt.Errorf("inspect queue %q: %w", queue, err)
	}
	s.mu.Lock()
	lanes := s.openLanes()
	s.mu.Unlock()
	for _, l := range lanes {
		if l.queue == queue && l.consumer != nil {
			q.Consumers -= l.consumer.miscounted()
		}
	}
	return broker.QueueInfo{Ready: q.Messages, Unsettled: -1, Consumers: max(0, q.Consumers)}, nil
}

// Purge implements [broker.Session].
func (s *session) Purge(ctx context.Context, queue string) (int, error) {
	var n int
	err := checkQueue(queue)
	if err == nil {
		err = s.settled(ctx, queue)
	}
	if err == nil {
		err = refused(readQueue, s.admin(ctx, queue, func(ch *amqp.Channel) (err error) {
			n, err = ch.QueuePurge(queue, false)
			return err
		}))
	}
	if err != nil {
		return 0, fmt.Errorf("purge queue %q: %w", queue, err)
	}
	return n, nil
}

// Delete implements [broker.Session].
func (s *session) Delete(ctx context.Context, queue string) error {
	err := checkQueue(queue)
	if err == nil {
		s.unbindDelays(ctx, queue)
		s.routes.forget(queue)
		err = refused(deleteQueue, s.admin(ctx, queue, func(ch *amqp.Channel) error {
			_, err := ch.QueueDelete(queue, false, false, false)
			return err
		}))
	}
	if err != nil && !errors.Is(err, broker.ErrQueueGone) {
		return fmt.Errorf("delete queue %q: %w", queue, err)
	}
	return nil
}

// TryGet implements [broker.Session]. It takes one round trip per message. The deliveries of one call share a channel,
// which is closed when all are settled.
func (s *session) TryGet(ctx context.Context, queue string, most int) ([]broker.Delivery, error) {
	err := checkQueue(queue)
	if err == nil {
		err = s.alive(ctx)
	}
	if err == nil {
		err = s.settled(ctx, queue)
	}
	if err != nil || most <= 0 || s.noSuspects(ctx, queue) {
		return nil, wrapGet(queue, err)
	}
	type pulled struct {
		lane *lane
		ds   []broker.Delivery
	}
	got, err := ask(ctx, s, queue, func() (p pulled, err error) {
		if err := s.channels.pull(most); err != nil {
			return p, err
		}
		if p.lane, err = s.openLane(queue, 0); err != nil {
			s.channels.give(queue, false)
			return p, err
		}
		for ok := true; ok && err == nil && len(p.ds) < most && ctx.Err() == nil; {
			var a amqp.Delivery
			if a, ok, err = p.lane.ch.Get(queue, false); ok && err == nil {
				p.ds = append(p.ds, p.lane.handOut(&a, nil))
			}
		}
		if err != nil || len(p.ds) == 0 {
			_ = p.lane.ch.Close()
			s.channels.give(queue, false)
			return p, err
		}
		p.lane.retire()
		p.lane.start()
		return p, nil
	}, func(p pulled) {
		if len(p.ds) > 0 {
			p.lane.lose(errClosed)
		}
	})
	return got.ds, wrapGet(queue, refused(readQueue, err))
}

// noSuspects reports whether a queue of suspects is known to be empty. RabbitMQ ends the connection over a get from a
// quorum queue without a leader (541, measured on 3.10.8), and workers get from these queues all the time. RabbitMQ
// counts no messages in a queue without a leader.
func (s *session) noSuspects(ctx context.Context, queue string) bool {
	if !s.can.Delay || !strings.HasSuffix(queue, broker.SuspectsSuffix) {
		return false
	}
	info, err := s.Inspect(ctx, queue)
	return err == nil && info.Ready == 0
}

func wrapGet(queue string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("get from queue %q: %w", queue, err)
}
