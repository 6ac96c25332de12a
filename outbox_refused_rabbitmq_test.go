package dispatcher_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
)

// A full queue nacks. The entries wait for room, in their order, and none becomes dead.
func TestRabbitMQ_EntriesForAFullQueueWaitForRoom(t *testing.T) {
	t.Parallel()
	const n = 5
	r := newRabbit(t, plainOutbox)
	ch := r.raw()
	args := amqp.Table{"x-max-length": 1, "x-overflow": "reject-publish"}
	if _, err := ch.QueueDeclare(r.name, true, false, false, false, args); err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind(r.name, r.name, r.name, false, nil); err != nil {
		t.Fatal(err)
	}
	r.cut()
	for i := range n {
		kept(t, "publish", r.server.Publish(&dispatcher.Task{UUID: fmt.Sprint(i), Name: "n"}))
	}
	r.back()
	for i := range n { // one at a time gets in
		r.queueIs(r.name, 1)
		outcome(t, "beside them", r.server.Publish(dispatcher.NewTask("n")), dispatcher.ErrInOutbox)
		if d := r.take(r.name, 1)[0]; d.MessageId != fmt.Sprint(i) {
			t.Errorf("task %s is in place %d", d.MessageId, i)
		}
	}
	if h := r.server.Health(t.Context()).Outbox; h.Dead != 0 {
		t.Errorf("outbox %+v", h)
	}
	r.server.Close()
}

// The broker refuses one entry for its size, by closing a channel. It is buried at once, and nothing beside it notices.
func TestRabbitMQ_AnEntryTooLargeForTheBrokerIsBuried(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.run("eval", "application:set_env(rabbit, max_message_size, 100000), persistent_term:put(max_message_size, 100000).") // the latter for RabbitMQ 4
	refused := make(chan dispatcher.PublishEvent, 10)
	r := placeOn(t, n.url)
	names := r.keys(20)
	r.serve(plainOutbox, withKeys(names), func(c *dispatcher.ServerConfig) {
		c.Hooks.OutboxRefused = func(e dispatcher.PublishEvent) { refused <- e }
	})
	r.cut()
	for round := range 2 { // the limit is known at the second
		for i, name := range names {
			task := &dispatcher.Task{UUID: fmt.Sprint(round, ".", i), Name: "n", RoutingKey: name}
			if i == 0 {
				task.Args = []dispatcher.TaskArgument{{"string", strings.Repeat("x", 300_000)}}
			}
			kept(t, "publish", r.server.Publish(task))
		}
		r.back()
		if e := wait(t, refused, "refusal"); e.RoutingKey != names[0] || !errors.Is(e.Err, dispatcher.ErrTooLarge) || !errors.Is(e.Err, dispatcher.ErrRejected) || !strings.Contains(e.Err.Error(), "100000") {
			t.Errorf("refused %+v", e)
		}
		for _, name := range names[1:] {
			eventually(t, "the others arrived", func() bool { ready, _ := r.count(name); return ready >= round+1 })
		}
		eventually(t, "the outbox is empty", func() bool {
			return r.server.Health(t.Context()).Outbox == dispatcher.OutboxHealth{Dead: round + 1}
		})
		r.cut()
	}
	r.back()
	err := r.server.Publish(dispatcher.NewTask("n", strings.Repeat("x", 300_000)))
	outcome(t, "direct", err, dispatcher.ErrTooLarge)
	if s := r.server.Stats(); s.Reconnects != 3 {
		t.Errorf("%d reconnects, want the three that were made here", s.Reconnects)
	}
}
