package rabbitmq_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
)

// eval runs Erlang code on the node, or skips the test.
func eval(t testing.TB, code string) string {
	t.Helper()
	ctl := os.Getenv("DISPATCHER_RABBITMQCTL")
	if ctl == "" || os.Getenv("DISPATCHER_TEST_NODES") != "1" {
		t.Skip("needs DISPATCHER_TEST_NODES=1 and DISPATCHER_RABBITMQCTL, beside DISPATCHER_AMQP_CON, to run code on that node")
	}
	out, err := exec.Command(ctl, "eval", code).CombinedOutput()
	if err != nil {
		t.Fatalf("rabbitmqctl eval %s: %v\n%s", code, err, out)
	}
	return strings.TrimSpace(string(out))
}

// queueAway makes RabbitMQ answer as if the node of a classic queue were down. One node is enough for that. Up to 3.13,
// and in later versions without Khepri, a queue whose node is down is in the table of durable queues and not in the
// table of queues.
func queueAway(t testing.TB, names ...string) (back func()) {
	t.Helper()
	if eval(t, "lists:member(rabbit_queue, ets:all()).") != "true" {
		t.Skip("the node keeps its queues in Khepri")
	}
	each := func(do string) {
		t.Helper()
		for _, name := range names {
			eval(t, fmt.Sprintf(`N = rabbit_misc:r(<<"/">>, queue, <<"%s">>), %s.`, name, do))
		}
	}
	each(`ok = mnesia:dirty_delete(rabbit_queue, N)`)
	return func() {
		t.Helper()
		each(`[Q] = mnesia:dirty_read(rabbit_durable_queue, N), ok = mnesia:dirty_write(rabbit_queue, Q)`)
	}
}

// boundQueue declares a queue with one binding of the same name, and deletes it after the test.
func boundQueue(t testing.TB, s broker.Session) (name string, top broker.Topology) {
	t.Helper()
	name = uniqueName()
	top = broker.Topology{
		Exchanges: []broker.Exchange{{Name: "rabbitmq.test", Kind: broker.Direct}},
		Queues:    []broker.QueueSpec{{Name: name}},
		Bindings:  []broker.Binding{{Queue: name, Exchange: "rabbitmq.test", Key: name}},
	}
	if err := s.Declare(testContext(t), top); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Delete(testContext(t), name) })
	return name, top
}

// A classic queue still exists while its node is down. Every method reports it as unavailable, not as gone.
func TestQueueWhoseNodeIsDownIsUnavailable(t *testing.T) {
	t.Parallel()
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	q, top := boundQueue(t, s)
	c := consume(t, s, q, 1)
	if err := c.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	back := queueAway(t, q)
	ctx := testContext(t)
	for what, do := range map[string]func() error{
		"declare": func() error { return s.Declare(ctx, top) },
		"bind":    func() error { return s.Declare(ctx, broker.Topology{Bindings: top.Bindings}) },
		"consume": func() error {
			_, err := s.Consume(ctx, broker.ConsumeOptions{Queue: q, Prefetch: 1})
			return err
		},
		"inspect": func() error { _, err := s.Inspect(ctx, q); return err },
		"get":     func() error { _, err := s.TryGet(ctx, q, 1); return err },
		"purge":   func() error { _, err := s.Purge(ctx, q); return err },
		"delete":  func() error { return s.Delete(ctx, q) },
	} {
		err := do()
		if !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrQueueGone) || errors.Is(err, broker.ErrRejected) {
			t.Errorf("%s: %v, want only %q", what, err, broker.ErrUnavailable)
		}
	}
	if err := s.Err(); err != nil {
		t.Errorf("the session ended: %v", err)
	}
	back()
	if err := s.Declare(ctx, top); err != nil {
		t.Errorf("declare when the node is back: %v", err)
	}
}

// RabbitMQ returns a message for a queue that is away as if there were no queue. The message is not sent, but it is not
// rejected.
func TestPublishToAQueueThatIsAwayIsNotSent(t *testing.T) {
	t.Parallel()
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	q, _ := boundQueue(t, s)
	back := queueAway(t, q)
	const n = 300
	msgs := make([]broker.Message, 0, 2*n)
	for i := range n {
		msgs = append(msgs,
			broker.Message{Exchange: "rabbitmq.test", RoutingKey: q, ID: fmt.Sprint("bound", i)},
			broker.Message{RoutingKey: q, ID: fmt.Sprint("default", i)})
	}
	for i, err := range outcomes(t, s, msgs...) {
		if !errors.Is(err, broker.ErrNotSent) || !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrRejected) {
			t.Fatalf("message %d: %v, want %q and %q", i, err, broker.ErrNotSent, broker.ErrUnavailable)
		}
	}
	for _, m := range []broker.Message{
		{Exchange: "rabbitmq.test", RoutingKey: uniqueName(), ID: "no key"},
		{RoutingKey: uniqueName(), ID: "no queue"},
	} {
		if err := outcomes(t, s, m)[0]; !errors.Is(err, broker.ErrUnroutable) || errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("%s: %v, want %q", m.ID, err, broker.ErrUnroutable)
		}
	}
	back()
	if err := outcomes(t, s, broker.Message{Exchange: "rabbitmq.test", RoutingKey: q, ID: "back"})[0]; err != nil {
		t.Errorf("publish when the node is back: %v", err)
	}
}

// When the node of a classic queue comes back, the queue returns before its bindings.
func TestPublishToAQueueThatLostItsBindingIsNotSentAndBindsItAgain(t *testing.T) {
	t.Parallel()
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	q, _ := boundQueue(t, s)
	ch := foreign(t)
	if err := ch.QueueUnbind(q, q, "rabbitmq.test", nil); err != nil {
		t.Fatal(err)
	}
	m := broker.Message{Exchange: "rabbitmq.test", RoutingKey: q, ID: "m"}
	if err := outcomes(t, s, m)[0]; !errors.Is(err, broker.ErrNotSent) || !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrRejected) {
		t.Errorf("publish: %v, want %q and %q", err, broker.ErrNotSent, broker.ErrUnavailable)
	}
	if err := outcomes(t, s, m)[0]; err != nil {
		t.Errorf("second publish: %v", err)
	}
}

// RabbitMQ closes the connection of a client that gets from a quorum queue without a leader. Workers look for suspects
// all the time, so one such queue would end all their sessions.
func TestSuspectsWithoutALeaderDoNotEndTheSession(t *testing.T) {
	t.Parallel()
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	q := uniqueName() + broker.SuspectsSuffix
	if err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: q}}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Delete(testContext(t), q) })
	fill(t, s, q, 1)
	server := fmt.Sprintf(`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"%s">>)), P = amqqueue:get_pid(Q), `, q)
	eval(t, server+`ok = ra:stop_server(quorum_queues, P).`)
	for range 3 {
		if ds, err := s.TryGet(testContext(t), q, 1); len(ds) > 0 || errors.Is(err, broker.ErrSessionLost) {
			t.Errorf("get: %d, %v", len(ds), err)
		}
	}
	if err := s.Err(); err != nil {
		t.Fatalf("the session ended: %v", err)
	}
	eval(t, server+`ok = ra:restart_server(quorum_queues, P).`)
	for {
		ds, err := s.TryGet(testContext(t), q, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(ds) == 1 {
			if err := ds[0].Ack(); err != nil {
				t.Error(err)
			}
			return
		}
	}
}
