package dispatcher_test

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// A message with every property of AMQP goes through a retry with a delay, a dead letter, a replay and a second dead letter.
func TestRabbitMQ_EveryCopyKeepsTheProperties(t *testing.T) {
	t.Parallel()
	r := newRabbit(t, func(c *dispatcher.ServerConfig) {
		c.Retry = &dispatcher.RetryPolicy{MaxAttempts: 2, InitialInterval: 50 * time.Millisecond}
	})
	calls := make(chan int, 10)
	r.worker(tasks{"n": fn(func() error { calls <- 1; return errors.New("no") })})
	user := r.url.User.Username()
	sent := amqp.Publishing{
		ContentType: "application/json", ContentEncoding: "utf-8", DeliveryMode: amqp.Persistent, Priority: 7,
		CorrelationId: "correlation", ReplyTo: "replies", Expiration: "30000", MessageId: "id", Timestamp: time.Unix(1_700_000_000, 0),
		Type: "n", UserId: user, AppId: "app", Headers: amqp.Table{"own": "header"}, Body: []byte(`{"uuid":"id","name":"n","args":null}`),
	}
	r.send(sent)
	without := sent
	without.Priority, without.Expiration, without.UserId, without.AppId, without.MessageId = 0, "", "", "", "without"
	without.Body = []byte(`{"uuid":"without","name":"n","args":null}`)
	r.send(without)

	dead := r.server.DeadLetters(r.name)
	for range 4 {
		wait(t, calls, "attempt")
	}
	eventually(t, "two dead letters", func() bool { n, err := dead.Count(t.Context()); return err == nil && n == 2 })
	l, err := dead.Get(t.Context(), "id")
	if err != nil {
		t.Fatal(err)
	}
	if l.Headers[dispatcher.UserIDHeader] != user || l.Headers[dispatcher.ExpirationHeader] != "30000" || l.Headers["own"] != "header" || len(l.Headers) != 3 {
		t.Errorf("headers for a person: %v", l.Headers)
	}
	if task, err := l.Task(); err != nil || len(task.Headers) != 1 {
		t.Errorf("as a task to publish: %v, %v", task, err)
	}
	if n, err := dead.Replay(t.Context(), dispatcher.DeadLetterFilter{Reason: dispatcher.ReasonFailed}); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	for range 4 {
		wait(t, calls, "attempt after the replay")
	}
	for _, d := range r.take(r.name+".dead", 2) {
		want := sent
		if d.MessageId == "without" {
			want = without
		}
		got := amqp.Publishing{
			ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: d.DeliveryMode, Priority: d.Priority,
			CorrelationId: d.CorrelationId, ReplyTo: d.ReplyTo, MessageId: d.MessageId, Timestamp: d.Timestamp, Type: d.Type, AppId: d.AppId,
		}
		if got.ContentType != want.ContentType || got.ContentEncoding != want.ContentEncoding || got.DeliveryMode != want.DeliveryMode ||
			got.Priority != want.Priority || got.CorrelationId != want.CorrelationId || got.ReplyTo != want.ReplyTo ||
			!got.Timestamp.Equal(want.Timestamp) || got.Type != want.Type || got.AppId != want.AppId || d.Headers["own"] != "header" {
			t.Errorf("message %q arrived as %+v", want.MessageId, got)
		}
		if d.Expiration != "" || d.UserId != "" {
			t.Errorf("message %q: expiration %q, user %q", d.MessageId, d.Expiration, d.UserId)
		}
		expiration, _ := d.Headers[broker.ExpirationHeader].(string)
		userID, _ := d.Headers[broker.UserIDHeader].(string)
		if expiration != want.Expiration || userID != want.UserId {
			t.Errorf("message %q: headers %v", d.MessageId, d.Headers)
		}
	}
}

// AMQP carries the seconds of a time and no zone.
func TestATimeInAHeaderIsTheSameOnEveryBroker(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		got := make(chan map[string]any, 1)
		v.worker(s, "w", tasks{"n": fn(func(ctx context.Context) {
			info, _ := dispatcher.TaskFromContext(ctx)
			got <- info.Headers
		})})
		zone := time.FixedZone("somewhere", 2*3600+30)
		for _, at := range []time.Time{
			time.Date(2026, 11, 28, 12, 0, 1, 999_999_999, zone), time.Date(1900, 1, 1, 12, 0, 0, 1, zone), {}, time.Unix(0, 0),
		} {
			task := dispatcher.NewTask("n")
			task.Headers = map[string]any{"at": at, "list": []time.Time{at}, "map": map[string]any{"at": at}}
			v.publishTask(s, task)
			want := time.Unix(at.Unix(), 0).UTC()
			if h := wait(t, got, "headers"); !reflect.DeepEqual(h, map[string]any{"at": want, "list": []any{want}, "map": map[string]any{"at": want}}) {
				t.Errorf("%v arrived as %v", at, h)
			}
		}
	})
}
