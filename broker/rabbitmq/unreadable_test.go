package rabbitmq_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math"
	"net"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// nested returns a table with that many others inside each other.
func nested(levels int) amqp.Table {
	table := amqp.Table{}
	for range levels {
		table = amqp.Table{"inner": table}
	}
	return table
}

// unreadableHeaders returns headers that RabbitMQ accepts and the client cannot read, by the reason.
func unreadableHeaders() map[string]amqp.Table {
	wide := amqp.Table{}
	for i := range 8193 {
		wide[string(rune('a'+i/676))+string(rune('a'+i/26%26))+string(rune('a'+i%26))] = nil
	}
	return map[string]amqp.Table{
		"nested deeper than 32":         nested(33),
		"array in the headers has more": {"list": make([]any, 8193)},
		"entries":                       wide,
		"need a frame of":               {"big": strings.Repeat("x", 130_900)}, // RabbitMQ adds x-death to them
	}
}

// otherClient returns a channel of a client of its own, as another program would use.
func otherClient(t testing.TB, dial func(network, addr string) (net.Conn, error)) *amqp.Channel {
	t.Helper()
	conn, err := amqp.DialConfig(amqpURL(t).String(), amqp.Config{Dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// send publishes p and waits for the confirmation.
func send(t testing.TB, ch *amqp.Channel, key string, p amqp.Publishing) {
	t.Helper()
	confirmation, err := ch.PublishWithDeferredConfirm("", key, true, false, p)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := confirmation.WaitContext(testContext(t)); !ok || err != nil {
		t.Fatal("not confirmed: ", err)
	}
}

// expiring returns a queue from which RabbitMQ moves every message to q at once, and adds x-death to it.
func expiring(t testing.TB, ch *amqp.Channel, q string) string {
	t.Helper()
	name := q + ".expiring"
	_, err := ch.QueueDeclare(name, false, false, false, false, amqp.Table{
		"x-message-ttl": int32(0), "x-dead-letter-exchange": "", "x-dead-letter-routing-key": q, "x-expires": int32(60_000),
	})
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func newQueue(t testing.TB, s broker.Session) string {
	t.Helper()
	q := uniqueName()
	if err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: q}}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Delete(context.Background(), q) })
	return q
}

func TestMessagesThatTheClientCannotReadComeWithoutTheirHeaders(t *testing.T) {
	t.Parallel()
	s := open(t, newBroker(t, rabbitmq.Config{URLs: []string{amqpURL(t).String()}}))
	q := newQueue(t, s)
	ch := otherClient(t, nil)
	want := map[string]string{"first": "", "last": ""}
	send(t, ch, q, amqp.Publishing{MessageId: "first", Headers: amqp.Table{"readable": true}})
	for why, headers := range unreadableHeaders() {
		to := q
		if headers["big"] != nil {
			to = expiring(t, ch, q)
		}
		send(t, ch, to, amqp.Publishing{MessageId: why, Headers: headers, Type: "kind", ContentType: "text/plain", Body: []byte("body of " + why)})
		want[why] = why
	}
	send(t, ch, q, amqp.Publishing{MessageId: "last", Headers: amqp.Table{"readable": true}})

	check := func(d *broker.Delivery) {
		t.Helper()
		why, known := want[d.ID]
		switch {
		case !known:
			t.Errorf("message %q", d.ID)
		case why == "" && (d.Unreadable != "" || d.Headers["readable"] != true):
			t.Errorf("%q: headers %v, unreadable %q", d.ID, d.Headers, d.Unreadable)
		case why != "":
			raw, _ := d.Headers[broker.RawHeaders].([]byte)
			if !strings.Contains(d.Unreadable, why) || len(d.Headers) != 1 || len(raw) == 0 || string(d.Body) != "body of "+why || d.Type != "kind" || d.ContentType != "text/plain" {
				t.Errorf("%q: unreadable %q, %d headers, %d raw bytes, type %q, body %q", d.ID, d.Unreadable, len(d.Headers), len(raw), d.Type, d.Body)
			}
		}
	}
	c, err := s.Consume(testContext(t), broker.ConsumeOptions{Queue: q, Prefetch: 100})
	if err != nil {
		t.Fatal(err)
	}
	for range want {
		select {
		case d, ok := <-c.Deliveries():
			if !ok {
				t.Fatalf("the consumer ended: %v", s.Err())
			}
			check(&d)
		case <-testContext(t).Done():
			t.Fatal("not all messages came")
		}
	}
	if err := c.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	unreadable := len(want) - 2
	if got := s.Status().Unreadable; !maps.Equal(got, map[string]int{q: unreadable}) {
		t.Errorf("status %v", got)
	}
	// All messages were given back, so TryGet returns them too.
	got, err := s.TryGet(testContext(t), q, len(want))
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d fetched, %v", len(got), err)
	}
	for i := range got {
		check(&got[i])
		if err := got[i].Ack(); err != nil {
			t.Error(err)
		}
	}
	if s.Err() != nil {
		t.Error(s.Err())
	}
}

// renaming is a connection that changes one type octet in the output of the client.
type renaming struct{ net.Conn }

func (r renaming) Write(p []byte) (int, error) {
	if _, err := r.Conn.Write(bytes.ReplaceAll(p, []byte("\x04longl"), []byte("\x04longL"))); err != nil {
		return 0, err
	}
	return len(p), nil
}

func TestIntegersOfOtherClientsAreReadable(t *testing.T) {
	t.Parallel()
	s := open(t, newBroker(t, rabbitmq.Config{URLs: []string{amqpURL(t).String()}}))
	q := newQueue(t, s)
	ch := otherClient(t, func(network, addr string) (net.Conn, error) {
		c, err := net.Dial(network, addr)
		return renaming{c}, err
	})
	send(t, ch, q, amqp.Publishing{MessageId: "1", Headers: amqp.Table{"long": int64(math.MinInt64)}})
	got, err := s.TryGet(testContext(t), q, 1)
	if err != nil || len(got) != 1 || got[0].Headers["long"] != int64(math.MinInt64) || got[0].Unreadable != "" {
		t.Fatalf("%v, %v, session: %v", got, err, s.Err())
	}
	_ = got[0].Ack()
}

// RabbitMQ accepts headers that are too deep or have too many entries, although nobody could read them. It closes the
// connection over the others.
func TestPublishRefusesHeadersThatNobodyCouldRead(t *testing.T) {
	t.Parallel()
	s := open(t, newBroker(t, rabbitmq.Config{URLs: []string{amqpURL(t).String()}}))
	q := newQueue(t, s)
	publish := func(id string, headers map[string]any) error {
		done := make(chan error, 1)
		s.Publish(testContext(t), []broker.Message{{RoutingKey: q, ID: id, Headers: headers}}, func(_ int, err error) { done <- err })
		return <-done
	}
	for name, c := range map[string]struct {
		headers map[string]any
		want    string
		is      error
	}{
		"depth":           {nested(33), "nested deeper than 32", broker.ErrHeadersTooLarge},
		"depth of arrays": {map[string]any{"a": []any{nested(32)}}, "nested deeper than 32", broker.ErrHeadersTooLarge},
		"elements":        {map[string]any{"a": make([]any, 8193)}, "8193 entries, the maximum is 8192", broker.ErrHeadersTooLarge},
		"entries":         {unreadableHeaders()["entries"], "8193 entries, the maximum is 8192", broker.ErrHeadersTooLarge},
		"frame":           {map[string]any{"a": strings.Repeat("x", 127_000)}, "the maximum is 126976", broker.ErrHeadersTooLarge},
		"not a number":    {map[string]any{"a": math.NaN()}, "NaN", broker.ErrRejected},
		"infinite":        {map[string]any{"a": []any{float32(math.Inf(1))}}, "+Inf", broker.ErrRejected},
	} {
		if err := publish(name, c.headers); !errors.Is(err, c.is) || !errors.Is(err, broker.ErrRejected) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	most := map[string]map[string]any{
		"depth 32": nested(32), "8,192 elements": {"a": make([]any, 8192)}, "most of a frame": {"a": strings.Repeat("x", 126_700)},
	}
	for name, headers := range most {
		if err := publish(name, headers); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	got, err := s.TryGet(testContext(t), q, 10)
	if err != nil || len(got) != len(most) {
		t.Fatalf("%d came, %v", len(got), err)
	}
	for _, d := range got {
		if d.Unreadable != "" {
			t.Errorf("%s: %s", d.ID, d.Unreadable)
		}
		_ = d.Ack()
	}
}
