package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// A message with every AMQP property goes through a delayed retry, a dead letter, a replay and a second dead letter.
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
	eventually(t, "there are two dead letters", func() bool { n, err := dead.Count(t.Context()); return err == nil && n == 2 })
	l, err := dead.Get(t.Context(), "id")
	if err != nil {
		t.Fatal(err)
	}
	if l.Headers[dispatcher.UserIDHeader] != user || l.Headers[dispatcher.ExpirationHeader] != "30000" || l.Headers["own"] != "header" || len(l.Headers) != 3 {
		t.Errorf("headers of the dead letter: %v", l.Headers)
	}
	if task, err := l.Task(); err != nil || len(task.Headers) != 1 {
		t.Errorf("Task returned %v, %v", task, err)
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

// AMQP carries a time in whole seconds and without a zone.
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

// Headers that Publish accepts leave room for everything that the library and RabbitMQ add later: eleven hops of a
// delay, retries with their log, a dead letter and a replay.
func TestRabbitMQ_TheLargestHeadersGoTheWholeWay(t *testing.T) {
	t.Parallel()
	r := newRabbit(t, func(c *dispatcher.ServerConfig) {
		c.Retry = &dispatcher.RetryPolicy{MaxAttempts: 2, InitialInterval: 50 * time.Millisecond}
	})
	many, nils, deep := map[string]any{}, make([]any, 8000), any("leaf")
	for i := range 8000 {
		many[strconv.Itoa(i)] = nil
	}
	for range 16 {
		deep = []any{deep}
	}
	all := map[string]map[string]any{
		"bytes":    {"h": strings.Repeat("x", 65_536-7)},
		"entries":  many,
		"elements": {"a": nils, "b": nils, "c": nils, "d": nils, "e": nils, "f": nils, "g": nils, "h": nils},
		"deep":     {"h": deep},
	}
	const attempts = 2
	failed := make(chan string, attempts*len(all))
	r.worker(tasks{"n": fn(func(name string) error {
		failed <- name
		return errors.New(strings.Repeat("\"long\" ", 300))
	})}, func(c *dispatcher.WorkerConfig) { c.Name = strings.Repeat("w", 255) })
	for name, headers := range all {
		task := dispatcher.NewTask("n", name)
		task.UUID, task.Headers, task.Delay = name, headers, (1<<7-1)*16*time.Millisecond
		if err := r.server.Publish(task); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	dead := r.server.DeadLetters(r.name)
	for round := range 2 {
		for range attempts * len(all) {
			wait(t, failed, "attempt")
		}
		var letters []dispatcher.DeadLetter
		eventually(t, "all tasks are dead letters", func() bool {
			var err error
			if letters, err = dead.List(t.Context(), dispatcher.DeadLetterFilter{}, dispatcher.Page{}); err != nil {
				t.Fatal(err)
			}
			return len(letters) == len(all)
		})
		for _, l := range letters {
			if !reflect.DeepEqual(l.Headers, all[l.UUID]) || l.Reason != dispatcher.ReasonFailed || len(l.Log) != attempts || strings.Contains(l.Error, "dropped") {
				t.Errorf("round %d, %q: %s, %d headers, %d lines of log, %.100s", round, l.UUID, l.Reason, len(l.Headers), len(l.Log), l.Error)
			}
		}
		if round == 1 {
			break
		}
		if n, err := dead.ReplayAll(t.Context()); n != len(all) || err != nil {
			t.Fatal(n, err)
		}
	}
	if h := r.server.Health(t.Context()); len(h.Unreadable) > 0 {
		t.Error(fmt.Sprint(h.Unreadable))
	}
}
