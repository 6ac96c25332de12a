package rabbitmq_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// RabbitMQ closes the channel over a message that it refuses. Only that message is refused. Others are not affected.
func TestMissingExchangeRefusesOnlyItsOwnMessages(t *testing.T) {
	t.Parallel()
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	x, q := exchange(t, s, broker.Direct), workQueue(t, s)
	bind(t, s, q, x, "key")
	missing := uniqueName()
	const rounds, each = 5, 40
	var all sync.WaitGroup
	for i := range each {
		all.Go(func() {
			for round := range rounds {
				m := broker.Message{Exchange: x, RoutingKey: "key", ID: fmt.Sprint(i, ".", round)}
				switch {
				case i == 0:
					m.Exchange = missing
				case i%2 == 0:
					m.Exchange, m.RoutingKey = "", q
				}
				err := outcomes(t, s, m)[0]
				switch {
				case i > 0 && err != nil:
					t.Errorf("a message beside the refused one: %v", err)
				case i == 0 && (!errors.Is(err, broker.ErrRejected) || !strings.Contains(err.Error(), missing)):
					t.Errorf("to a missing exchange: %v", err)
				}
			}
		})
	}
	all.Wait()
	if s.Err() != nil {
		t.Errorf("session: %v", s.Err())
	}
	if info, err := s.Inspect(testContext(t), q); err != nil || info.Ready != rounds*(each-1) {
		t.Errorf("in the queue: %+v, %v, want %d", info, err, rounds*(each-1))
	}
}

// Messages behind a refused one are written again, in their order.
func TestMessagesBehindARefusedOneArriveInOrder(t *testing.T) {
	t.Parallel()
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	good, bad := exchange(t, s, broker.Direct), exchange(t, s, broker.Direct)
	q := workQueue(t, s)
	bind(t, s, q, good, "key")
	bind(t, s, q, bad, "key")
	// Both are known to exist, so messages to them share a channel.
	for i, err := range outcomes(t, s, broker.Message{Exchange: bad, RoutingKey: "key", ID: "0"}, broker.Message{Exchange: good, RoutingKey: "key", ID: "1"}) {
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	if err := foreign(t).ExchangeDelete(bad, false, false); err != nil {
		t.Fatal(err)
	}
	const n = 140
	msgs := make([]broker.Message, n)
	for i := range msgs {
		msgs[i] = broker.Message{Exchange: good, RoutingKey: "key", ID: fmt.Sprint(i + 2)}
	}
	refused := broker.Message{Exchange: bad, RoutingKey: "key", ID: "refused"}
	for i, err := range outcomes(t, s, append([]broker.Message{refused}, msgs...)...) {
		if i == 0 && !errors.Is(err, broker.ErrRejected) || i > 0 && err != nil {
			t.Errorf("message %d: %v", i, err)
		}
	}
	c := consume(t, s, q, n+2)
	for i := range n + 2 {
		if d := receive(t, c); d.ID != fmt.Sprint(i) {
			t.Fatalf("message %s is in place %d", d.ID, i)
		}
	}
}

// An exchange is deleted between two messages. The first may be in its queue, so it must not be reported as refused.
func TestDeletedExchangeLeavesNoMessageRefusedThatIsInItsQueue(t *testing.T) {
	t.Parallel()
	s, ch := open(t, through(t, amqpURL(t), amqpURL(t).Host)), foreign(t)
	q := workQueue(t, s)
	const rounds, n = 10, 200
	for round := range rounds {
		x := exchange(t, s, broker.Direct)
		bind(t, s, q, x, "key")
		msgs := make([]broker.Message, n)
		for i := range msgs {
			msgs[i] = broker.Message{Exchange: x, RoutingKey: "key", ID: fmt.Sprint(round, ".", i)}
		}
		deleted := make(chan struct{})
		go func() {
			defer close(deleted)
			if err := ch.ExchangeDelete(x, false, false); err != nil {
				t.Error(err)
			}
		}()
		errs := outcomes(t, s, msgs...)
		<-deleted
		confirmed := make(map[string]bool)
		refused := make(map[string]bool)
		for i, err := range errs {
			confirmed[msgs[i].ID] = err == nil
			refused[msgs[i].ID] = errors.Is(err, broker.ErrRejected) || errors.Is(err, broker.ErrNotSent)
		}
		ds, err := s.TryGet(testContext(t), q, 2*n)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			if refused[d.ID] {
				t.Errorf("message %s was refused and is in its queue", d.ID)
			}
			delete(confirmed, d.ID)
			if err := d.Ack(); err != nil {
				t.Error(err)
			}
		}
		for id, ok := range confirmed {
			if ok {
				t.Errorf("message %s was confirmed and is not in its queue", id)
			}
		}
	}
	if s.Err() != nil {
		t.Errorf("session: %v", s.Err())
	}
}

// When a channel's client of a quorum queue has met a dead leader, RabbitMQ nacks every later message on that channel.
// So the channel is replaced, and the consumers stay.
func TestChannelThatNackedIsReplaced(t *testing.T) {
	t.Parallel()
	full := queue(t, amqp.Table{"x-overflow": "reject-publish", "x-max-length": 1})
	good := queue(t, nil)
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	c := consume(t, s, good, 1)
	before := rabbitmq.Channel(s)
	nacked, ctx := false, testContext(t)
	for i := 0; rabbitmq.Channel(s) == before; i++ {
		err := outcomes(t, s, broker.Message{RoutingKey: full, ID: fmt.Sprint(i)})[0]
		nacked = nacked || errors.Is(err, broker.ErrNacked)
		if err != nil && !errors.Is(err, broker.ErrNacked) || ctx.Err() != nil {
			t.Fatalf("the channel is not replaced: %v", err)
		}
		select {
		case <-time.After(10 * time.Millisecond): // the pause of a publisher
		case <-s.Done():
			t.Fatal(s.Err())
		}
	}
	if !nacked {
		t.Error("the channel was replaced without a nack")
	}
	if err := outcomes(t, s, broker.Message{RoutingKey: good, ID: "m"})[0]; err != nil {
		t.Error(err)
	}
	if err := receive(t, c).Ack(); err != nil {
		t.Error(err)
	}
}

// RabbitMQ would close the channel over these messages, with a reason that names none of them.
func TestWhatWouldEndTheChannelIsRefused(t *testing.T) {
	t.Parallel()
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	q := workQueue(t, s)
	before := rabbitmq.Channel(s)
	for i, err := range outcomes(t, s,
		broker.Message{RoutingKey: q, ID: "1", Headers: map[string]any{"CC": "key"}},
		broker.Message{RoutingKey: q, ID: "2", Headers: map[string]any{"BCC": nil}},
		broker.Message{RoutingKey: q, ID: "3", ReplyTo: "amq.rabbitmq.reply-to"},
	) {
		if !errors.Is(err, broker.ErrRejected) {
			t.Errorf("message %d: %v", i, err)
		}
	}
	if err := outcomes(t, s, broker.Message{RoutingKey: q, ID: "4", Headers: map[string]any{"CC": []any{q}}})[0]; err != nil {
		t.Error(err)
	}
	if rabbitmq.Channel(s) != before {
		t.Error("the channel was closed")
	}
}
