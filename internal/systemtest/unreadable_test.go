package systemtest_test

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// A message whose headers the session could not read is never run, because its number of attempts and its expiry are
// unknown.
func TestUnreadableHeadersMakeADeadLetter(t *testing.T) {
	t.Parallel()
	raw := []byte{1, 2, 3}
	h := hooked{arrives: func(d *broker.Delivery) {
		if strings.HasPrefix(d.ID, "bad") {
			d.Unreadable, d.Headers = "too deep", map[string]any{broker.RawHeaders: raw}
		}
	}}
	died := make(chan dispatcher.DeadLetterEvent, 9)
	r := newRig(t, withHooks(&h), func(c *dispatcher.ServerConfig) {
		c.Hooks.DeadLettered = func(e dispatcher.DeadLetterEvent) { died <- e }
	})
	ran := make(chan string, 9)
	r.worker("w", tasks{"n": {Function: func(id string) { ran <- id }, TaskUUIDAsFirstArg: true}})
	for _, id := range []string{"good1", "bad", "good2"} {
		r.publishRaw("jobs", broker.Message{ID: id, Type: "n", Body: fmt.Appendf(nil, `{"uuid":%q,"name":"n","args":[]}`, id), Headers: map[string]any{
			"mine": true, "x-dispatcher-expires-at": time.Now().Add(time.Hour).Format(time.RFC3339Nano),
		}})
	}
	r.publishRaw("jobs", broker.Message{ID: "bad body", Body: []byte("?")})
	for range 2 {
		if id := wait(t, ran, "task"); id == "bad" {
			t.Error("the unreadable task ran")
		}
	}
	for range 2 {
		e := wait(t, died, "dead letter")
		if e.Reason != dispatcher.ReasonMalformed || !errors.Is(e.Err, dispatcher.ErrMalformed) {
			t.Errorf("event %+v", e)
		}
	}
	letters, err := r.server.DeadLetters("jobs").List(t.Context(), dispatcher.DeadLetterFilter{UUID: "bad"}, dispatcher.Page{})
	if err != nil || len(letters) != 1 {
		t.Fatalf("letters %v, %v", letters, err)
	}
	l := letters[0]
	if got, _ := l.Headers[dispatcher.RawHeaders].([]byte); l.Name != "n" || l.Error != "malformed task: its headers cannot be read: too deep" || string(got) != string(raw) || len(l.Headers) != 1 {
		t.Errorf("dead letter %+v", l)
	}
}

// unreadable returns headers that RabbitMQ accepts but that make a worker's AMQP client end its connection. Each key is
// a word of the reason.
func unreadable() map[string]amqp.Table {
	deep := amqp.Table{}
	for range 33 {
		deep = amqp.Table{"inner": deep}
	}
	return map[string]amqp.Table{
		"deeper": deep,
		"8192":   {"list": make([]any, 8193)},
		"frame":  {"big": strings.Repeat("x", 130_900)}, // RabbitMQ adds x-death on top
	}
}

// putUnreadable puts one task with each of those headers into a queue. The keys of unreadable are their uuids.
func (r *rabbit) putUnreadable(queue string) {
	r.t.Helper()
	ch := r.raw()
	expiring := r.name + ".expiring"
	_, err := ch.QueueDeclare(expiring, false, false, false, false, amqp.Table{
		"x-message-ttl": int32(0), "x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue, "x-expires": int32(60_000),
	})
	if err == nil {
		err = ch.Confirm(false)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	for why, headers := range unreadable() {
		to := queue
		if why == "frame" {
			to = expiring
		}
		body := fmt.Sprintf(`{"uuid":%q,"name":"n","args":[{"type":"string","value":%q}]}`, why, why)
		c, err := ch.PublishWithDeferredConfirm("", to, true, false, amqp.Publishing{MessageId: why, Headers: headers, Body: []byte(body)})
		if err != nil {
			r.t.Fatal(err)
		}
		if ok, err := c.WaitContext(r.t.Context()); !ok {
			r.t.Fatal("not confirmed: ", err)
		}
	}
}

func TestRabbitMQ_TasksWithUnreadableHeadersHoldUpNobody(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	second := r.name + ".second"
	r.sweep(second, second+".dead", second+".suspects")
	var lost atomic.Int32
	r.serve(func(c *dispatcher.ServerConfig) {
		c.Hooks.Disconnected = func(dispatcher.ConnectionEvent) { lost.Add(1) }
		c.InitQueues = []dispatcher.Queue{{Name: r.name, BindingKeys: []string{r.name}}, {Name: second, BindingKeys: []string{second}}}
	})
	for i := range 3 {
		r.publish("n", fmt.Sprint("before ", i))
		task := dispatcher.NewTask("n", fmt.Sprint("second ", i))
		task.RoutingKey = second
		if err := r.server.Publish(task); err != nil {
			t.Fatal(err)
		}
	}
	r.putUnreadable(r.name)
	for i := range 3 {
		r.publish("n", fmt.Sprint("after ", i))
	}
	ran := make(chan string, 100)
	set := tasks{"n": fn(func(s string) { ran <- s })}
	r.worker(set)
	r.worker(set, func(c *dispatcher.WorkerConfig) { c.Name, c.Queue, c.BindingKeys = "w2", second, nil })
	got := map[string]int{}
	for range 9 {
		got[wait(t, ran, "task")]++
	}
	dead := r.server.DeadLetters(r.name)
	var letters []dispatcher.DeadLetter
	eventually(t, "there are three dead letters", func() bool {
		var err error
		if letters, err = dead.List(t.Context(), dispatcher.DeadLetterFilter{}, dispatcher.Page{}); err != nil {
			t.Fatal(err)
		}
		return len(letters) == 3
	})
	for _, l := range letters {
		raw, _ := l.Headers[dispatcher.RawHeaders].([]byte)
		if unreadable()[l.UUID] == nil || l.Reason != dispatcher.ReasonMalformed || !strings.Contains(l.Error, l.UUID) || l.Name != "n" || len(raw) == 0 {
			t.Errorf("dead letter %q %q: %s: %s; %d raw bytes", l.UUID, l.Name, l.Reason, l.Error, len(raw))
		}
		if task, err := l.Task(); err != nil || len(task.Headers) > 0 {
			t.Errorf("Task of dead letter %q: %v", l.UUID, err)
		}
	}
	if h := r.server.Health(t.Context()); !maps.Equal(h.Unreadable, map[string]int{r.name: 3}) || !h.OK() {
		t.Errorf("health %+v", h)
	}
	// A replay still runs them.
	if n, err := dead.Replay(t.Context(), dispatcher.DeadLetterFilter{Reason: dispatcher.ReasonMalformed}); n != 3 || err != nil {
		t.Errorf("%d replayed, %v", n, err)
	}
	for range 3 {
		got[wait(t, ran, "replayed task")]++
	}
	for text, n := range got {
		if n != 1 {
			t.Errorf("%q ran %d times", text, n)
		}
	}
	if len(got) != 12 || lost.Load() != 0 {
		t.Errorf("%d tasks ran, the connection was lost %d times", len(got), lost.Load())
	}
}

// Other programs, or RabbitMQ, may put unreadable messages among the dead letters.
func TestRabbitMQ_UnreadableDeadLettersCanBeListedAndReplayed(t *testing.T) {
	t.Parallel()
	g := onRabbitMQ(t)
	r := &rabbit{t: t, url: amqpURL(t), name: g.queue}
	r.putUnreadable(g.queue + ".dead")
	g.put(g.queue+".dead", broker.Message{ID: "readable", Type: "n", Body: []byte(`{"uuid":"readable","name":"n","args":[]}`)})
	found := map[string]string{}
	letters, err := g.dead.List(t.Context(), dispatcher.DeadLetterFilter{}, dispatcher.Page{})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range letters {
		found[l.UUID] = l.Reason
		if l.UUID != "readable" && !strings.Contains(l.Error, "cannot be read: ") {
			t.Errorf("dead letter %q: %s", l.UUID, l.Error)
		}
	}
	if len(found) != 4 || found["8192"] != dispatcher.ReasonMalformed {
		t.Errorf("found the dead letters %v", found)
	}
	if n, err := g.dead.Delete(t.Context(), dispatcher.DeadLetterFilter{UUID: "8192"}); n != 1 || err != nil {
		t.Errorf("%d deleted, %v", n, err)
	}
	if n, err := g.dead.ReplayAll(t.Context()); n != 3 || err != nil {
		t.Errorf("%d replayed, %v", n, err)
	}
	for _, m := range g.take(g.queue) {
		raw, _ := m.Headers[dispatcher.RawHeaders].([]byte)
		if m.Unreadable != "" || (m.ID != "readable") != (len(raw) > 0) {
			t.Errorf("message %q: %d raw bytes, unreadable %q", m.ID, len(raw), m.Unreadable)
		}
	}
}
