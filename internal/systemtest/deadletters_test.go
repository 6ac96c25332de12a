package systemtest_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// each calls every method of d.
func each(ctx context.Context, d *dispatcher.DeadLetters, check func(method string, n int, err error)) {
	letters, err := d.List(ctx, filter{}, dispatcher.Page{})
	check("List", len(letters), err)
	_, err = d.Get(ctx, "u")
	check("Get", 0, err)
	for method, f := range map[string]func() (int, error){
		"Count":  func() (int, error) { return d.Count(ctx) },
		"Replay": func() (int, error) { return d.ReplayAll(ctx) },
		"Delete": func() (int, error) { return d.Delete(ctx, filter{Name: "a"}) },
		"Purge":  func() (int, error) { return d.Purge(ctx) },
	} {
		n, err := f()
		check(method, n, err)
	}
}

func TestNoDeadLetters(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, g *graveyard) {
		none := func(method string, n int, err error) {
			if method == "Get" && errors.Is(err, dispatcher.ErrDeadLetterNotFound) {
				err = nil
			}
			if n != 0 || err != nil {
				t.Errorf("%s: %d, %v", method, n, err)
			}
		}
		each(t.Context(), g.dead, none)
		if !strings.HasPrefix(t.Name(), "TestNoDeadLetters/rabbitmq") { // other tests may have made that queue on RabbitMQ
			each(t.Context(), g.server.DeadLetters(dispatcher.Undeliverable), none)
		}
	})
}

func TestAQueueWithoutDeadLettersIsNamed(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, g *graveyard) {
		each(t.Context(), g.server.DeadLetters(g.queue+".no"), func(method string, n int, err error) {
			if n != 0 || !errors.Is(err, dispatcher.ErrQueueGone) || !strings.Contains(err.Error(), g.queue+".no.dead") {
				t.Errorf("%s: %d, %v", method, n, err)
			}
		})
		if err := g.server.Publish(dispatcher.NewTask("x")); !errors.Is(err, dispatcher.ErrUnroutable) {
			t.Errorf("the connection no longer works: %v", err)
		}
	})
}

func TestNamesThatNoQueueHasAreRefused(t *testing.T) {
	t.Parallel()
	g := onMemory(t)
	for name, word := range map[string]string{
		"": "Empty queue name", "jobs.dead": `"jobs"`, "jobs.suspects": `"jobs"`, strings.Repeat("x", 241): "241 bytes", "a\xff": "UTF-8",
	} {
		each(t.Context(), g.server.DeadLetters(name), func(method string, n int, err error) {
			if n != 0 || err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("%s of %.20q: %d, %v", method, name, n, err)
			}
		})
	}
}

func TestDeadLettersOfAClosedServer(t *testing.T) {
	t.Parallel()
	g := onMemory(t)
	g.server.Close()
	each(t.Context(), g.dead, func(method string, n int, err error) {
		if n != 0 || !errors.Is(err, dispatcher.ErrServerClosed) {
			t.Errorf("%s: %d, %v", method, n, err)
		}
	})
}

func TestDeadLettersWaitForAConnectionAsLongAsTheirContext(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.worker("w", tasks{"x": fn(func() error { return errors.New("no") })})
	r.publish("x")
	eventually(t, "there is a dead letter", func() bool { return r.inspect("jobs.dead").Ready == 1 })
	r.chaos.FailOpen(errors.New("down"))
	r.chaos.Kill()
	eventually(t, "the server notices the loss", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnecting })
	d := r.server.DeadLetters("jobs")
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	each(ctx, d, func(method string, n int, err error) {
		if n != 0 || !errors.Is(err, dispatcher.ErrDisconnected) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %d, %v", method, n, err)
		}
	})
	r.chaos.FailOpen(nil)
	if n, err := d.Count(t.Context()); n != 1 || err != nil {
		t.Errorf("count after the connection came back: %d, %v", n, err)
	}
}

func TestUndeliverableTasksAreListedAndReplayed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	soon := time.Now().Add(500 * time.Millisecond) // late enough that a slow publish is not due at once
	late := func(id, exchange, key string) broker.Message {
		return broker.Message{ID: id, Type: "n", Exchange: exchange, RoutingKey: key, NotBefore: soon,
			Headers: map[string]any{"x-dispatcher-attempt": int64(2)}, Body: []byte(`{"uuid":"` + id + `","name":"n"}`)}
	}
	s := r.session()
	err := s.Declare(t.Context(), broker.Topology{Exchanges: []broker.Exchange{{Name: "foreign", Kind: broker.Direct}}, Queues: []broker.QueueSpec{{Name: "gone"}}})
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan error, 3)
	s.Publish(t.Context(), []broker.Message{late("delayed", "jobs", "jobs"), late("retried", "", "gone"), late("other", "foreign", "k")},
		func(_ int, err error) { answers <- err })
	for range 3 {
		if err := wait(t, answers, "answer"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	d := r.server.DeadLetters(dispatcher.Undeliverable)
	eventually(t, "three letters are undeliverable", func() bool { n, err := d.Count(t.Context()); return n == 3 && err == nil })
	letters, err := d.List(t.Context(), filter{Reason: dispatcher.ReasonUndeliverable}, dispatcher.Page{})
	if err != nil || len(letters) != 3 {
		t.Fatalf("%d letters: %v", len(letters), err)
	}
	for i, want := range []dispatcher.DeadLetter{
		{UUID: "delayed", Exchange: "jobs", RoutingKey: "jobs"}, {UUID: "retried", Queue: "gone", RoutingKey: "gone"}, {UUID: "other", Exchange: "foreign", RoutingKey: "k"},
	} {
		if l := letters[i]; l.UUID != want.UUID || l.Queue != want.Queue || l.Exchange != want.Exchange || l.RoutingKey != want.RoutingKey || l.Attempts != 2 {
			t.Errorf("%+v\nwant %+v", l, want)
		}
	}
	n, err := d.ReplayAll(t.Context())
	if n != 0 || !errors.Is(err, dispatcher.ErrRejected) || !strings.Contains(err.Error(), "3 refused and kept") {
		t.Errorf("%d replayed although no task has a queue: %v", n, err)
	}
	got := make(chan string, 3)
	r.worker("w", tasks{"n": {TaskUUIDAsFirstArg: true, Function: func(uuid string) { got <- uuid }}})
	n, err = d.ReplayAll(t.Context())
	if n != 1 || !errors.Is(err, dispatcher.ErrRejected) || !strings.Contains(err.Error(), "2 refused and kept") {
		t.Errorf("%d replayed: %v", n, err)
	}
	if uuid := wait(t, got, "task"); uuid != "delayed" {
		t.Errorf("%q ran", uuid)
	}
	if n, err := d.Purge(t.Context()); n != 2 || err != nil {
		t.Errorf("%d purged: %v", n, err)
	}
}

// An HTTP handler that gets no parameter must not replay or delete everything.
func TestAnEmptyFilterReplaysAndDeletesNothing(t *testing.T) {
	t.Parallel()
	g := onMemory(t)
	g.bury(0, 3)
	for method, call := range map[string]func(context.Context, filter) (int, error){"Replay": g.dead.Replay, "Delete": g.dead.Delete} {
		for _, empty := range []filter{{}, {Headers: map[string]string{}}} {
			if n, err := call(t.Context(), empty); n != 0 || err == nil || !strings.Contains(err.Error(), "filter is empty") {
				t.Errorf("%s with an empty filter: %d, %v", method, n, err)
			}
		}
	}
	same(t, "letters", g.list(filter{}, dispatcher.Page{}), []int{0, 1, 2})
	if n, err := g.dead.ReplayAll(t.Context()); n != 3 || err != nil {
		t.Errorf("ReplayAll: %d, %v", n, err)
	}
}
