package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// delays holds what a session knows about delayed messages.
type delays struct {
	memory *memory // shared with other sessions
	probes probes

	mu      sync.Mutex
	fanouts map[string]struct{} // exchanges that take every key
}

// levelArguments returns the arguments of the queue of a level or an exit. Only a quorum queue with this strategy loses
// nothing between two queues (measured: kill -9 with 6,000 messages on their way lost 2,250 with classic queues and
// none with these). The strategy exists since 3.10 and needs reject-publish. Without the feature flag stream_queue it
// silently falls back. There is no x-expires: a queue that nobody consumes would count as unused and be deleted with
// its messages.
func levelArguments(level int) amqp.Table {
	args := quorumArguments()
	args["x-message-ttl"] = int64(1) << level
	args["x-dead-letter-exchange"] = below(level)
	args["x-dead-letter-strategy"] = "at-least-once"
	args["x-overflow"] = "reject-publish"
	return args
}

// below returns the exchange that a message enters after a level or an exit.
func below(level int) string {
	if level == exitLevel {
		return deliverExchange
	}
	return levelName(level - 1)
}

// deliverArguments returns the arguments of the deliver exchange. A message that no queue takes there would stay in its
// exit, and 32 of them stop the exit (measured). For the alternate exchange RabbitMQ considers only queues that are
// bound to the deliver exchange itself, so there must be no other exchange between.
func deliverArguments() amqp.Table { return amqp.Table{"alternate-exchange": strayExchange} }

// step is one declaration among several.
type step struct {
	what string // for errors
	op   operation
	do   func(ch *amqp.Channel) error
}

// stepError reports which step was refused.
type stepError struct {
	step
	err error
}

func (e *stepError) Error() string { return fmt.Sprintf("%s: %v", e.what, refused(e.op, e.err)) }
func (e *stepError) Unwrap() error { return e.err }

// inOneGo runs steps on one channel, up to the first that is refused. turn is the turn that it takes: see admin.
func (s *session) inOneGo(ctx context.Context, turn string, steps []step) error {
	return s.admin(ctx, turn, func(ch *amqp.Channel) error {
		for _, x := range steps {
			if err := x.do(ch); err != nil {
				return &stepError{x, err}
			}
		}
		return nil
	})
}

// explained applies refused to the error of several steps.
func explained(err error) error {
	if e, ok := errors.AsType[*stepError](err); ok {
		return fmt.Errorf("%s: %w", e.what, refused(e.op, e.err))
	}
	return err
}

func stepExchange(name, kind string, args amqp.Table, op operation) step {
	return step{fmt.Sprintf("declare exchange %q", name), op, func(ch *amqp.Channel) error {
		return ch.ExchangeDeclare(name, kind, true, false, false, false, args)
	}}
}

func stepQueue(name string, args amqp.Table, op operation) step {
	return step{fmt.Sprintf("declare queue %q", name), op, func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare(name, true, false, false, false, args)
		return err
	}}
}

func stepBind(queue, key, exchange string) step {
	return step{fmt.Sprintf("bind queue %q to exchange %q", queue, exchange), bindQueue, func(ch *amqp.Channel) error {
		return ch.QueueBind(queue, key, exchange, false, nil)
	}}
}

func stepBindExchange(to, key, from string) step {
	return step{fmt.Sprintf("bind exchange %q to exchange %q", to, from), bindExchange, func(ch *amqp.Channel) error {
		return ch.ExchangeBind(to, key, from, false, nil)
	}}
}

// baseSteps returns the steps that declare the deliver exchange, which comes last: if it exists, so does the rest.
func baseSteps() []step {
	return []step{
		stepQueue(broker.Undeliverable, quorumArguments(), declareQueue),
		stepExchange(strayExchange, "fanout", nil, declareExchange),
		stepBind(broker.Undeliverable, "", strayExchange),
		stepExchange(deliverExchange, "topic", deliverArguments(), declareDeliver),
	}
}

// levelSteps returns the steps that declare the exits and then the levels from the bottom up: if a level exists,
// everything below it is complete. If a program stops in the middle, a message to the last level is returned, and none
// gets stuck on its way.
func levelSteps() []step {
	steps := []step{
		stepQueue(probeSink, sinkArguments(), declareQueue),
		stepBind(probeSink, deliverPattern(probeWord), deliverExchange),
		stepExchange(exitExchange, "topic", nil, declareExchange),
	}
	for _, exit := range strings.Split(exits, "") {
		name := exitName(exit)
		steps = append(steps,
			stepQueue(name, levelArguments(exitLevel), declareLevel),
			stepBind(name, exitPattern(exit), exitExchange),
		)
	}
	for level := lowestLevel; level <= highestLevel; level++ {
		name := levelName(level)
		steps = append(steps,
			stepQueue(name, levelArguments(level), declareLevel),
			stepExchange(name, "topic", nil, declareExchange),
			stepBindExchange(below(level), levelPattern(level, "0"), name),
			stepBind(name, levelPattern(level, "1"), name),
		)
	}
	return steps
}

// declareOrFind runs steps. If the user lacks the permission for that, it is enough that last exists, the exchange that
// they declare last.
func (s *session) declareOrFind(steps []step, last string) error {
	ctx := context.Background() // ends with the session
	err := s.inOneGo(ctx, "", steps)
	if mayNot(err) && s.admin(ctx, "", func(ch *amqp.Channel) error {
		return ch.ExchangeDeclarePassive(last, "topic", true, false, false, false, nil)
	}) == nil {
		return nil
	}
	return err
}

// declareBase declares where due messages go, unless a session of this Broker has done so before.
func (s *session) declareBase(ctx context.Context) (*run, error) {
	return s.delays.memory.base.do(ctx, s, func() error {
		return explained(s.declareOrFind(baseSteps(), deliverExchange))
	})
}

// withBase runs do, which needs the deliver exchange. If that exchange was deleted, withBase declares it again and runs
// do once more.
func (s *session) withBase(ctx context.Context, do func() error) error {
	for again := false; ; again = true {
		base, err := s.declareBase(ctx)
		if err != nil {
			return err
		}
		err = do()
		e, ok := errors.AsType[*amqp.Error](err)
		if again || !ok || e.Code != amqp.NotFound || !strings.Contains(e.Reason, "no exchange '"+deliverExchange+"'") {
			return err
		}
		s.delays.memory.forgetBase(base)
	}
}

// declareLevels declares everything that a delayed message needs, except the binding of its target queue, unless a
// session of this Broker has done so before. If something was deleted meanwhile, messages published to it show that:
// see publisher.rewrite.
func (s *session) declareLevels(ctx context.Context) (*run, error) {
	return s.delays.memory.levels.do(ctx, s, func() error {
		err := s.withBase(context.Background(), func() error {
			return s.declareOrFind(levelSteps(), levelName(highestLevel))
		})
		if err != nil {
			return explained(err)
		}
		return s.publish.mayWriteLevels()
	})
}
