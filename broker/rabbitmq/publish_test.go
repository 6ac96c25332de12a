package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
)

// outcomes publishes msgs and waits for every outcome.
func outcomes(t testing.TB, s broker.Session, msgs ...broker.Message) []error {
	t.Helper()
	type told struct {
		i   int
		err error
	}
	all := make(chan told, len(msgs))
	ctx := testContext(t)
	s.Publish(ctx, msgs, func(i int, err error) { all <- told{i, err} })
	errs := make([]error, len(msgs))
	for range msgs {
		select {
		case o := <-all:
			errs[o.i] = o.err
		case <-ctx.Done():
			t.Fatal("waited in vain for outcomes")
		}
	}
	return errs
}

// foreign opens a channel as another program would, without this package.
func foreign(t testing.TB) *amqp.Channel {
	t.Helper()
	c, err := amqp.Dial(amqpURL(t).String())
	if err != nil {
		t.Fatal(err)
	}
	ch, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return ch
}

// queue declares a queue as another program would, and deletes it when the test ends.
func queue(t testing.TB, args amqp.Table) string {
	t.Helper()
	ch, name := foreign(t), uniqueName()
	if _, err := ch.QueueDeclare(name, true, false, false, false, args); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = ch.QueueDelete(name, false, false, false) })
	return name
}

func direct(t testing.TB) *brokertest.Proxy { return brokertest.NewProxy(t, amqpURL(t).Host) }

// RabbitMQ confirms several messages with one frame, although it has rejected some in between. A client that believes
// the frame reports rejected messages as confirmed.
func TestEveryRejectedMessageIsReportedAmongConfirmedOnes(t *testing.T) {
	t.Parallel()
	const n = 6000
	full := queue(t, amqp.Table{"x-overflow": "reject-publish", "x-max-length": 1})
	good := queue(t, amqp.Table{"x-queue-type": "quorum"})
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	for _, err := range outcomes(t, s, broker.Message{RoutingKey: full, ID: "first"}, broker.Message{RoutingKey: full, ID: "second"}) {
		_ = err // RabbitMQ may take one or two before the queue is full
	}
	msgs := make([]broker.Message, n)
	for i := range msgs {
		msgs[i] = broker.Message{RoutingKey: good, ID: fmt.Sprint(i)}
		if i%3 == 0 {
			msgs[i].RoutingKey = full
		}
	}
	rejected := 0
	for i, err := range outcomes(t, s, msgs...) {
		switch {
		case i%3 != 0 && err != nil:
			t.Fatalf("message %d to a good queue: %v", i, err)
		case i%3 == 0 && errors.Is(err, broker.ErrNacked) && errors.Is(err, broker.ErrUnconfirmed) && !errors.Is(err, broker.ErrRejected):
			rejected++
		case i%3 == 0:
			t.Errorf("message %d to a full queue: %v", i, err)
		}
	}
	t.Logf("%d of %d rejected", rejected, n/3)
	if info, err := s.Inspect(testContext(t), full); err != nil || info.Ready > 2 {
		t.Errorf("the full queue holds %+v, %v", info, err)
	}
}

// The second publish of an ID waits for the outcome of the first and writes nothing before.
func TestSameIDInFlightWaits(t *testing.T) {
	t.Parallel()
	q, proxy := queue(t, nil), direct(t)
	s := open(t, through(t, amqpURL(t), proxy.Addr()))
	proxy.Stall(true)
	first := make(chan error, 1)
	m := broker.Message{RoutingKey: q, ID: "same"}
	s.Publish(testContext(t), []broker.Message{m}, func(_ int, err error) { first <- err })

	ctx, cancel := context.WithCancel(context.Background())
	second := make(chan error, 1)
	go s.Publish(ctx, []broker.Message{m}, func(_ int, err error) { second <- err })
	third := make(chan error, 1)
	go s.Publish(testContext(t), []broker.Message{m}, func(_ int, err error) { third <- err })
	cancel()
	if err := <-second; !errors.Is(err, broker.ErrNotSent) || !errors.Is(err, context.Canceled) {
		t.Errorf("the second: %v, want not sent", err)
	}
	select {
	case err := <-first:
		t.Errorf("the first, over a stalled link: %v", err)
	case err := <-third:
		t.Errorf("the third, while the first is in flight: %v", err)
	default:
	}
	proxy.Stall(false)
	if err := <-first; err != nil {
		t.Errorf("the first: %v", err)
	}
	if err := <-third; err != nil {
		t.Errorf("the third: %v", err)
	}
	if info, err := s.Inspect(testContext(t), q); err != nil || info.Ready != 2 {
		t.Errorf("in the queue: %+v, %v, want 2", info, err)
	}
}

func TestUnroutableSaysWhere(t *testing.T) {
	t.Parallel()
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	nowhere := uniqueName()
	err := outcomes(t, s, broker.Message{RoutingKey: nowhere, ID: "1"})[0]
	if !errors.Is(err, broker.ErrUnroutable) || !strings.Contains(err.Error(), nowhere) || !strings.Contains(err.Error(), "NO_ROUTE") {
		t.Errorf("got %v", err)
	}
}

// The client closes the connection over a name of more than 255 bytes. The broker closes it over headers that do not
// fit in a frame.
func TestWhatDoesNotFitIsRefusedBeforeItIsWritten(t *testing.T) {
	t.Parallel()
	q := queue(t, nil)
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	long := strings.Repeat("n", 256)
	bad := []broker.Message{
		{RoutingKey: long, ID: "1"}, {Exchange: long, ID: "1"}, {RoutingKey: q, ID: long}, {RoutingKey: q, ID: "1", Type: long},
		{RoutingKey: q, ID: "1", ContentType: long}, {RoutingKey: q, ID: "1", CorrelationID: long}, {RoutingKey: q, ID: "1", ReplyTo: long},
		{RoutingKey: q, ID: "1", Headers: map[string]any{long: true}},
		{RoutingKey: q, ID: "1", Headers: map[string]any{"a": []any{map[string]any{long: true}}}},
		{RoutingKey: q, ID: "1", Headers: map[string]any{"channel": make(chan int)}},
		{RoutingKey: q, ID: "1", Headers: map[string]any{"uint64": uint64(1) << 63}},
		{RoutingKey: q, ID: "1", Headers: map[string]any{"long": strings.Repeat("v", 131_000)}},
		{RoutingKey: q},
	}
	for i, err := range outcomes(t, s, bad...) {
		if !errors.Is(err, broker.ErrRejected) {
			t.Errorf("message %d: %v", i, err)
		}
	}
	// A message that just fits is sent.
	edge := broker.Message{RoutingKey: q, ID: long[:255], Type: long[:255], Headers: map[string]any{long[:255]: strings.Repeat("v", 126_000), "int": 1 << 40}}
	if err := outcomes(t, s, edge)[0]; err != nil {
		t.Errorf("a message that just fits: %v", err)
	}
	ds, err := s.TryGet(testContext(t), q, 1)
	if err != nil || len(ds) != 1 || ds[0].Headers["int"] != int64(1<<40) {
		t.Fatalf("got %v, %v", ds, err)
	}
	if err := ds[0].Ack(); err != nil {
		t.Error(err)
	}
}
