package rabbitmq_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// holdBindings stops a node from answering queue.bind. All nodes of a cluster behave so while one of them hangs.
func (n *node) holdBindings(t testing.TB) (release func()) {
	t.Helper()
	if strings.TrimSpace(n.ask(t, "eval", "lists:member(rabbit_durable_route, ets:all()).")) != "true" {
		t.Skip("the node keeps its bindings in Khepri")
	}
	n.ask(t, "eval", `Self = self(), P = spawn(fun() -> mnesia:transaction(fun() ->
		[mnesia:lock({table, T}, write) || T <- [rabbit_durable_route, rabbit_route]], Self ! locked, receive stop -> ok after 300000 -> ok end end) end),
		register(held_bindings, P), receive locked -> ok end.`)
	released := false
	release = func() {
		if !released {
			released = true
			n.ask(t, "eval", "held_bindings ! stop.")
		}
	}
	t.Cleanup(release)
	return release
}

// A session that begins while RabbitMQ answers no queue.bind can still publish, consume, delay and retry.
func testUnansweredBindings(t *testing.T, n *node) {
	t.Run("after a closed session", func(t *testing.T) {
		unansweredBindings(t, n, n.url.Host, func(s broker.Session) {
			if err := s.Close(testContext(t)); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("after a lost session", func(t *testing.T) {
		proxy := brokertest.NewProxy(t, n.url.Host)
		unansweredBindings(t, n, proxy.Addr(), func(s broker.Session) {
			proxy.Cut()
			wait(t, "the session's end", s.Done())
		})
	})
}

func unansweredBindings(t *testing.T, n *node, host string, end func(broker.Session)) {
	b := through(t, n.url, host)
	s, x, q := open(t, b), uniqueName(), uniqueName()
	top := broker.Topology{
		Exchanges: []broker.Exchange{{Name: x, Kind: broker.Direct}},
		Queues:    []broker.QueueSpec{{Name: q}},
		Bindings:  []broker.Binding{{Queue: q, Exchange: x, Key: "k"}},
	}
	if err := s.Declare(testContext(t), top); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = open(t, n.broker(t)).Delete(testContext(t), q) })
	published(t, s, broker.Message{RoutingKey: q, ID: "first", NotBefore: time.Now().Add(time.Hour)})
	consume(t, s, q, 1) // the end of this consumer says nothing about the queue
	end(s)

	release := n.holdBindings(t)
	s = open(t, b)
	t.Cleanup(release)
	for range 20 { // more than there are channels for calls
		ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
		if err := s.Declare(ctx, top); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("declare: %v", err)
		}
		cancel()
	}
	c := consume(t, s, q, 1)
	retry := func(id string, at time.Time) {
		t.Helper()
		d := receive(t, c)
		if d.ID != id {
			t.Errorf("got %q, want %q", d.ID, id)
		}
		if err := d.Retry(testContext(t), d.Forward(), time.Until(at)); err != nil {
			t.Fatal(err)
		}
		if err := due(t, c, at).Ack(); err != nil {
			t.Error(err)
		}
	}
	published(t, s, broker.Message{RoutingKey: q, ID: "plain"})
	retry("plain", soon())
	// A missing answer does not mean that there is no queue. Of the two keys below, only the declared one is known, and
	// its queue is not bound yet.
	top.Bindings[0].Key = "other"
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	if err := s.Declare(ctx, top); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("declare: %v", err)
	}
	cancel()
	for key, want := range map[string]error{"other": broker.ErrUnavailable, "nobody's": broker.ErrUnroutable} {
		err := outcomes(t, s, broker.Message{Exchange: x, RoutingKey: key, ID: key})[0]
		if !errors.Is(err, want) || errors.Is(err, broker.ErrUnroutable) == errors.Is(err, broker.ErrNotSent) {
			t.Errorf("a message with key %q: %v", key, err)
		}
	}
	published(t, s, broker.Message{RoutingKey: q, ID: "delayed", NotBefore: soon()})
	rabbitmq.AgeBindings(b)
	retry("delayed", time.Now().Add(1500*time.Millisecond))
	if _, err := s.Inspect(testContext(t), q); err != nil {
		t.Errorf("inspect: %v", err)
	}
	release()
	if err := s.Declare(testContext(t), top); err != nil {
		t.Errorf("declare: %v", err)
	}
}
