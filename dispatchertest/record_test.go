package dispatchertest_test

import (
	"errors"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/dispatchertest"
)

func TestPublishedReturnsEveryTaskAsItTraveled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		kit := dispatchertest.New()
		server := kit.NewServer(t, &dispatcher.ServerConfig{
			Exchange: "app", DefaultRoutingKey: "mail",
			InitQueues: []dispatcher.Queue{{Name: "mail", BindingKeys: []string{"mail", "mail.urgent"}}},
		})
		type order struct{ ID int64 }
		expires := time.Now().Add(48*time.Hour + 5)
		first := dispatcher.NewTask("send", "ann", 2, []byte("x"), order{1<<53 + 1})
		first.RoutingKey, first.Delay, first.ExpiresAt = "mail.urgent", 36*time.Hour+7*time.Nanosecond, expires
		first.Headers = map[string]any{"tenant": "blue", "n": 3, "list": []int{1}}
		publish(t, server, first)
		second := dispatcher.NewTask("bill")
		second.NotBefore = time.Now().Add(time.Hour)
		for i, err := range server.PublishBatch(t.Context(), []*dispatcher.Task{second, dispatcher.NewTask(""), dispatcher.NewTask("send", "bob")}) {
			if (err != nil) != (i == 1) {
				t.Errorf("task %d of the batch: %v", i, err)
			}
		}
		nowhere := dispatcher.NewTask("send", "eve")
		nowhere.RoutingKey = "nowhere"
		if err := server.Publish(nowhere); !errors.Is(err, dispatcher.ErrUnroutable) {
			t.Errorf("to a key without a queue: %v", err)
		}

		all := kit.Published()
		if len(all) != 3 || all[0].Name != "send" || all[1].Name != "bill" || all[2].Name != "send" {
			t.Fatalf("published %+v", all)
		}
		got := all[0]
		if got.UUID != first.UUID || got.RoutingKey != "mail.urgent" || got.Delay != first.Delay || !got.ExpiresAt.Equal(expires) ||
			!got.NotBefore.Equal(time.Now().Add(first.Delay)) {
			t.Errorf("got %+v\nwant %+v", got, first)
		}
		if want := map[string]any{"tenant": "blue", "n": int64(3), "list": []any{int64(1)}}; !reflect.DeepEqual(got.Headers, want) {
			t.Errorf("headers %#v", got.Headers)
		}
		var to string
		var copies int8
		var data []byte
		var o order
		if err := got.DecodeArgs(&to, &copies, &data, &o); err != nil || to != "ann" || copies != 2 || string(data) != "x" || o.ID != 1<<53+1 {
			t.Errorf("arguments %q %d %q %+v, %v", to, copies, data, o, err)
		}
		if all[1].Delay != time.Hour || !all[1].NotBefore.Equal(second.NotBefore) || all[1].Headers != nil || !all[1].ExpiresAt.IsZero() {
			t.Errorf("second %+v", all[1])
		}
		if last := all[2]; last.RoutingKey != "mail" || last.Delay != 0 || !last.NotBefore.IsZero() {
			t.Errorf("third %+v", last)
		}

		all[0].Headers["tenant"] = "red"
		if h := kit.Published("send")[0].Headers; h["tenant"] != "blue" {
			t.Error("the tasks are not copies")
		}
		for want, n := range map[int][]string{2: {"send"}, 1: {"bill"}, 3: {"bill", "send"}, 0: {"nobody"}} {
			if got := kit.Published(n...); len(got) != want {
				t.Errorf("%d tasks of %q, want %d", len(got), n, want)
			}
		}
	})
}

// A worker may publish the next task before the publish of the first has returned.
func TestPublishedKeepsTheOrder(t *testing.T) {
	t.Parallel()
	kit := dispatchertest.New()
	server := kit.NewServer(t, nil)
	start(t, server, tasks{"n": {Function: func(left int) error {
		if left == 0 {
			return nil
		}
		return server.Publish(dispatcher.NewTask("n", left-1))
	}}})
	publish(t, server, dispatcher.NewTask("n", 200))
	idle(t, kit)
	all := kit.Published()
	if len(all) != 201 {
		t.Fatalf("%d tasks", len(all))
	}
	for i, task := range all {
		var left int
		if err := task.DecodeArgs(&left); err != nil || left != 200-i {
			t.Fatalf("task %d has %d, %v", i, left, err)
		}
	}
}

// This is the same case without a race. The second task is always published before the publish of the first returns.
func TestPublishedGoesByTheBeginningOfAPublish(t *testing.T) {
	t.Parallel()
	kit := dispatchertest.New()
	server := kit.NewServer(t, nil)
	session, err := kit.Config(nil).Broker.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first := broker.Message{ID: "u-1", Exchange: "test", RoutingKey: "test", Type: "first", Body: []byte("not a task")}
	session.Publish(t.Context(), []broker.Message{first}, func(int, error) { publish(t, server, dispatcher.NewTask("second")) })
	if err := session.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := kit.Published()
	if len(all) != 2 || all[0].Name != "first" || all[0].UUID != "u-1" || all[0].Args != nil || all[1].Name != "second" {
		t.Errorf("published %+v", all)
	}
}

// Tasks in the outbox are not published yet. brokertest.Chaos can make the Kit's broker fail.
func TestPublishedSeesWhatLeavesTheOutbox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		kit := dispatchertest.New()
		cfg := kit.Config(nil)
		chaos := brokertest.NewChaos(cfg.Broker, nil)
		cfg.Broker, cfg.Outbox = chaos, dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})
		sent := make(chan dispatcher.PublishEvent, 2)
		cfg.Hooks.Published = func(e dispatcher.PublishEvent) { sent <- e }
		cfg.Logger = discard{}
		server, _, err := dispatcher.NewServer(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		chaos.FailOpen(errors.New("down"))
		chaos.Kill()
		synctest.Wait()
		task := dispatcher.NewTask("send", "ann")
		task.Delay = time.Hour
		if err := server.Publish(task); !errors.Is(err, dispatcher.ErrInOutbox) {
			t.Fatal(err)
		}
		<-sent
		kit.RequireNotPublished(t)
		<-time.After(10 * time.Minute)
		chaos.FailOpen(nil)
		if e := <-sent; e.Err != nil {
			t.Fatal(e.Err)
		}
		if got := kit.RequirePublished(t, "send", "ann"); got.UUID != task.UUID || got.Delay != time.Hour {
			t.Errorf("got %+v", got)
		}
	})
}

func TestPublishedLeavesReplaysOut(t *testing.T) {
	t.Parallel()
	kit := dispatchertest.New()
	server := kit.NewServer(t, nil)
	start(t, server, tasks{"n": {Function: func() error { return errors.New("no") }}})
	publish(t, server, dispatcher.NewTask("n"))
	if r := idle(t, kit); len(r.DeadLetters) != 1 {
		t.Fatal(r)
	}
	if n, err := server.DeadLetters("test").Replay(t.Context(), dispatcher.DeadLetterFilter{Name: "n"}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if r := idle(t, kit); len(r.Failed) != 1 || len(r.DeadLetters) != 1 {
		t.Fatal(r)
	}
	kit.RequirePublished(t, "n")
}

// Two programs share their broker.
func TestSeveralServersShareAKit(t *testing.T) {
	t.Parallel()
	kit := dispatchertest.New()
	sender, receiver := kit.NewServer(t, nil), kit.NewServer(t, nil)
	var got string
	start(t, receiver, tasks{"send": {Function: func(to string) { got = to }}})
	publish(t, sender, dispatcher.NewTask("send", "ann"))
	if r := idle(t, kit); names(r.Succeeded) != "send/1" || got != "ann" {
		t.Errorf("%v, sent to %q", r, got)
	}
	kit.RequirePublished(t, "send")
}

// discard is a log that drops everything.
type discard struct{}

func (discard) Info(...any)           {}
func (discard) Infof(string, ...any)  {}
func (discard) Debug(...any)          {}
func (discard) Debugf(string, ...any) {}
func (discard) Error(...any)          {}
func (discard) Errorf(string, ...any) {}
