package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

func receive(t testing.TB, c broker.Consumer) broker.Delivery {
	t.Helper()
	select {
	case d, ok := <-c.Deliveries():
		if !ok {
			t.Fatalf("the consumer ended: %v", c.Err())
		}
		return d
	case <-time.After(patience):
		t.Fatal("waited in vain for a delivery")
	}
	panic("unreachable")
}

func consume(t testing.TB, s broker.Session, q string, prefetch int) broker.Consumer {
	t.Helper()
	c, err := s.Consume(testContext(t), broker.ConsumeOptions{Queue: q, Prefetch: prefetch})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// wait blocks until c is closed.
func wait(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
}

func fill(t testing.TB, s broker.Session, q string, n int) {
	t.Helper()
	msgs := make([]broker.Message, n)
	for i := range msgs {
		msgs[i] = broker.Message{RoutingKey: q, ID: fmt.Sprint(i)}
	}
	for _, err := range outcomes(t, s, msgs...) {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A pulled cable gives no signal. Every call still returns, and the session ends after two heartbeats.
func TestSilentPeerIsFoundAndNothingHangs(t *testing.T) {
	t.Parallel()
	q, proxy := queue(t, nil), direct(t)
	s := open(t, through(t, amqpURL(t), proxy.Addr()).WithHeartbeat(time.Second))
	const n = 200
	fill(t, s, q, n)
	c := consume(t, s, q, n)
	var ds []broker.Delivery
	for range n {
		ds = append(ds, receive(t, c))
	}
	proxy.Stall(true)
	stalled := time.Now()
	for _, d := range ds[:n/2] {
		if err := d.Ack(); err != nil {
			t.Fatalf("ack: %v", err)
		}
	}
	if took := time.Since(stalled); took > time.Second {
		t.Errorf("%d acks took %v", n/2, took)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancelled := make(chan error, 1)
	go func() { _, err := s.Inspect(ctx, q); cancelled <- err }()
	cancel()
	if err := <-cancelled; !errors.Is(err, context.Canceled) {
		t.Errorf("inspect: %v", err)
	}
	retried := make(chan error, 1)
	go func() { retried <- ds[n-1].Retry(testContext(t), ds[n-1].Forward(), 0) }()
	closed := make(chan error, 1)
	go func() { closed <- c.Close(testContext(t)) }()
	o := outcomes(t, s, broker.Message{RoutingKey: q, ID: "late"})
	if !errors.Is(o[0], broker.ErrUnconfirmed) {
		t.Errorf("publish: %v", o[0])
	}
	wait(t, "the session's end", s.Done())
	if took := time.Since(stalled); took > 10*time.Second {
		t.Errorf("the session ended after %v", took)
	}
	if err := s.Err(); !errors.Is(err, broker.ErrSessionLost) || !strings.Contains(err.Error(), "2s") {
		t.Errorf("session: %v", err)
	}
	if err := <-retried; !errors.Is(err, broker.ErrDeliveryLost) {
		t.Errorf("retry: %v", err)
	}
	if err := <-closed; !errors.Is(err, broker.ErrSessionLost) {
		t.Errorf("close of the consumer: %v", err)
	}
	if err := ds[n-2].Ack(); !errors.Is(err, broker.ErrDeliveryLost) {
		t.Errorf("late ack: %v", err)
	}
}

// If a peer stops reading, writes block and are given up.
func TestPeerThatTakesNothingIsFound(t *testing.T) {
	t.Parallel()
	q, proxy := queue(t, nil), direct(t)
	s := open(t, through(t, amqpURL(t), proxy.Addr()).WithHeartbeat(time.Second))
	msgs := make([]broker.Message, 900)
	for i := range msgs {
		msgs[i] = broker.Message{RoutingKey: q, ID: fmt.Sprint(i), Body: make([]byte, 100_000)}
	}
	if err := outcomes(t, s, msgs[0])[0]; err != nil {
		t.Fatal(err) // otherwise the first of the others would go alone
	}
	proxy.Stall(true)
	unconfirmed, notSent := 0, 0
	for _, err := range outcomes(t, s, msgs...) {
		switch {
		case errors.Is(err, broker.ErrUnconfirmed):
			unconfirmed++
		case errors.Is(err, broker.ErrNotSent):
			notSent++
		default:
			t.Fatal(err)
		}
	}
	if unconfirmed == 0 || notSent == 0 {
		t.Errorf("%d unconfirmed, %d not sent", unconfirmed, notSent)
	}
	wait(t, "the session's end", s.Done())
}

// Open does not hang on a listener that sends nothing.
func TestOpenIsBoundedByItsContext(t *testing.T) {
	t.Parallel()
	proxy := direct(t)
	proxy.Stall(true)
	b := through(t, amqpURL(t), proxy.Addr())
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := b.Open(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	proxy.Stall(false)
	open(t, b)
}

// If a session cannot be closed cleanly, it is cut when the context of Close ends.
func TestCloseOverAStalledLinkIsBoundedByItsContext(t *testing.T) {
	t.Parallel()
	q, proxy := queue(t, nil), direct(t)
	s := open(t, through(t, amqpURL(t), proxy.Addr()))
	c := consume(t, s, q, 10)
	fill(t, s, q, 10)
	d := receive(t, c)
	proxy.Stall(true)
	if err := d.Ack(); err != nil {
		t.Error(err)
	}
	inFlight := make(chan error, 1)
	s.Publish(testContext(t), []broker.Message{{RoutingKey: q, ID: "in flight"}}, func(_ int, err error) { inFlight <- err })
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close: %v", err)
	}
	wait(t, "the session's end", s.Done())
	if err := <-inFlight; !errors.Is(err, broker.ErrUnconfirmed) {
		t.Errorf("publish in flight: %v", err)
	}
}

// Other programs may use every field type of AMQP. Such headers must arrive, and survive a retry and a dead letter.
func TestForeignHeaderTypesAreHarmless(t *testing.T) {
	t.Parallel()
	q := queue(t, nil)
	dead := foreign(t)
	if _, err := dead.QueueDeclare(q+broker.DeadSuffix, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = dead.QueueDelete(q+broker.DeadSuffix, false, false, false) })
	want := amqp.Table{
		"int8": int8(-5), "uint8": uint8(200), "int16": int16(-300), "uint16": uint16(60000), "int32": int32(-70000),
		"uint32": uint32(4e9), "float32": float32(0.5), "decimal": amqp.Decimal{Scale: 2, Value: 314}, "nil": nil,
		"table": amqp.Table{"a": []any{uint8(1), amqp.Table{"b": int16(2)}}},
	}
	err := foreign(t).PublishWithContext(testContext(t), "", q, true, false, amqp.Publishing{MessageId: "m", Headers: want})
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	c := consume(t, s, q, 1)
	d := receive(t, c)
	for range 2 {
		for name, v := range want {
			if name != "table" && d.Headers[name] != v {
				t.Errorf("header %s is %#v, want %#v", name, d.Headers[name], v)
			}
		}
		if table, ok := d.Headers["table"].(map[string]any); !ok || len(table["a"].([]any)) != 2 {
			t.Errorf("header table is %#v", d.Headers["table"])
		}
		if err := d.Retry(testContext(t), d.Forward(), 0); err != nil {
			t.Fatal(err)
		}
		d = receive(t, c)
	}
	if err := d.DeadLetter(testContext(t), d.Forward()); err != nil {
		t.Error(err)
	}
	if s.Err() != nil {
		t.Error(s.Err())
	}
}

func TestDeclarationsThatDifferAreRefusedWithAHint(t *testing.T) {
	t.Parallel()
	q := queue(t, amqp.Table{"x-max-length": 5})
	ch, x := foreign(t), uniqueName()
	if err := ch.ExchangeDeclare(x, "topic", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ch.ExchangeDelete(x, false, false) })
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	for name, top := range map[string]broker.Topology{
		q: {Queues: []broker.QueueSpec{{Name: q}}},
		x: {Exchanges: []broker.Exchange{{Name: x, Kind: broker.Direct}}},
	} {
		err := s.Declare(testContext(t), top)
		if !errors.Is(err, broker.ErrRejected) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "delete it or use the same properties") {
			t.Errorf("got %v", err)
		}
	}
	err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: "amq.mine"}}})
	if !errors.Is(err, broker.ErrRejected) {
		t.Errorf("declare a name that belongs to the broker: %v", err)
	}
	if s.Err() != nil {
		t.Errorf("the refusal ended the session: %v", s.Err())
	}
}

// Close closes the connections of a session one after another. Acks that were written just before must all arrive.
func TestCloseLosesNoAck(t *testing.T) {
	t.Parallel()
	q := queue(t, nil)
	b := through(t, amqpURL(t), amqpURL(t).Host)
	watcher := open(t, b)
	for round := range 40 {
		s := open(t, b)
		fill(t, s, q, 30)
		c := consume(t, s, q, 30)
		for range 30 {
			if err := receive(t, c).Ack(); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if info, err := watcher.Inspect(testContext(t), q); err != nil || info.Ready != 0 {
			t.Fatalf("round %d: %+v, %v", round, info, err)
		}
	}
}
