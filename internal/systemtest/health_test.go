package systemtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

func TestHealthSaysWhatAWorkerDoes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	gate, entered := make(chan struct{}), make(chan struct{}, 9)
	w := r.worker("w", tasks{"n": fn(func() { entered <- struct{}{}; <-gate })}, limit(1))
	r.publish("n")
	r.publish("n")
	wait(t, entered, "call")
	h := r.server.Health(t.Context())
	if len(h.Workers) != 1 || !h.OK() || h.State != dispatcher.StateConnected {
		t.Fatalf("health %+v", h)
	}
	if wh := h.Workers[0]; wh.Name != "w" || wh.Queue != "jobs" || !wh.Started || !wh.Consuming || wh.Running != 1 || wh.Ready != 1 || wh.Dead != 0 {
		t.Errorf("worker %+v", wh)
	}
	close(gate)
	w.Close()
	if wh := r.server.Health(t.Context()).Workers[0]; wh.Started || wh.Consuming || wh.Running != 0 {
		t.Errorf("worker after Close: %+v", wh)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if wh := r.server.Health(ended).Workers[0]; wh.Ready != -1 || wh.Dead != -1 {
		t.Errorf("with an ended context: %+v, want unknown counts", wh)
	}
	r.server.Close()
	if h := r.server.Health(t.Context()); h.State != dispatcher.StateClosed || h.OK() {
		t.Errorf("health after Close: %+v", h)
	}
}

// The names are an interface, because dashboards and probes read them.
func TestHealthAsJSON(t *testing.T) {
	t.Parallel()
	at := func(minute int) time.Time { return time.Date(2026, 11, 28, 12, minute, 0, 250e6, time.UTC) }
	full := dispatcher.Health{
		State: dispatcher.StateConnecting, Since: at(1), LastError: errors.New("dial tcp: refused"), LastErrorAt: at(2),
		Blocked: "low on memory", Delays: "late by 3 s",
		Outbox: dispatcher.OutboxHealth{Entries: 3, Dead: 1, Failing: 2, LastError: errors.New("disk is full"), LastErrorAt: at(3)},
		Workers: []dispatcher.WorkerHealth{{
			Name: "mailer", Queue: "mail", Started: true, Consuming: true, Running: 2, Abandoned: 1, Stuck: 4, Held: 5, Prefetch: 9,
			Suspects: "no channel is free", Ready: 6, Dead: -1, LastError: panicking{}, LastErrorAt: at(4),
		}},
		Undeclared: []dispatcher.Undeclared{{Kind: "queue", Name: "mail", Problem: "406", Since: at(5)}},
		Channels:   "all are taken", Unreadable: map[string]int{"mail": 7}, Unanswered: 8,
	}
	for _, v := range []any{full, full.Outbox, full.Workers[0], full.Undeclared[0]} {
		for i, v := 0, reflect.ValueOf(v); i < v.NumField(); i++ {
			if v.Field(i).IsZero() {
				t.Errorf("this test does not set %s.%s", v.Type().Name(), v.Type().Field(i).Name)
			}
		}
	}
	for file, h := range map[string]dispatcher.Health{
		"health.json":       full,
		"health_empty.json": {State: dispatcher.StateConnected, Since: at(0)},
	} {
		got, err := json.MarshalIndent(h, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile("testdata/" + file)
		if err != nil || !bytes.Equal(bytes.TrimSpace(want), got) {
			t.Errorf("%s, %v: got\n%s", file, err, got)
		}
	}
}

// panicking is an error whose Error method panics.
type panicking struct{}

func (panicking) Error() string { panic("in Error") }

func TestHealthDatesItsErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		r.worker("w", tasks{"n": fn(func() error { return errors.New("x") })})
		if h := r.server.Health(t.Context()); !h.LastErrorAt.IsZero() || !h.Workers[0].LastErrorAt.IsZero() {
			t.Errorf("a date without an error: %+v", h)
		}
		<-time.After(time.Minute)
		lost := time.Now()
		r.chaos.Kill()
		synctest.Wait()
		failed := time.Now().Add(time.Minute)
		r.chaos.FailDeadLetter(errors.New("not now"))
		<-time.After(time.Minute)
		uuid := r.publish("n").UUID
		synctest.Wait()
		const unwritten = `write verdict "dead letter" of task "n" (%q): not now`
		h := r.server.Health(t.Context())
		if !h.LastErrorAt.Equal(lost) || !h.Workers[0].LastErrorAt.Equal(failed) || h.Workers[0].LastError.Error() != fmt.Sprintf(unwritten, uuid) {
			t.Errorf("%v at %v, %v at %v", h.LastError, h.LastErrorAt, h.Workers[0].LastError, h.Workers[0].LastErrorAt)
		}
		text, err := json.Marshal(h)
		if err != nil || !strings.Contains(string(text), `"last_error":"session lost: killed"`) || !strings.Contains(string(text), `): not now"`) {
			t.Errorf("%s, %v", text, err)
		}
		r.chaos.FailDeadLetter(nil)
	})
}

// A server that cannot fetch suspects is not healthy, for example when no channel is free.
func TestHealthSaysThatSuspectsCannotBeFetched(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		full := &fullBroker{}
		r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) { full.Broker = c.Broker; c.Broker = full })
		r.worker("w", tasks{"n": fn(func() {})})
		<-time.After(time.Minute)
		if h := r.server.Health(t.Context()); !h.OK() || h.Workers[0].Suspects != "" {
			t.Errorf("at first: %+v", h.Workers)
		}
		full.get.Store(func(context.Context) error { return errors.New("no channel is free") })
		<-time.After(time.Minute)
		if h := r.server.Health(t.Context()); h.OK() || h.Workers[0].Suspects != "fetch a suspect: no channel is free" || h.Workers[0].LastErrorAt.IsZero() {
			t.Errorf("OK %t, %+v", h.OK(), h.Workers)
		}
		full.get.Store(func(context.Context) error { return nil })
		<-time.After(time.Minute)
		if h := r.server.Health(t.Context()); !h.OK() {
			t.Errorf("afterwards: %+v", h.Workers)
		}
		full.get.Store(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		<-time.After(time.Minute)
		if h := r.server.Health(t.Context()); h.OK() || h.Workers[0].Suspects != "fetch a suspect: no answer for 5s" {
			t.Errorf("OK %t, %+v", h.OK(), h.Workers)
		}
	})
}

// fullBroker is a broker whose TryGet first calls the function in get, and returns its error.
type fullBroker struct {
	broker.Broker
	get atomic.Value // func(context.Context) error
}

type fullSession struct {
	broker.Session
	b *fullBroker
}

func (b *fullBroker) Open(ctx context.Context) (broker.Session, error) {
	s, err := b.Broker.Open(ctx)
	return fullSession{s, b}, err
}

func (s fullSession) TryGet(ctx context.Context, queue string, n int) ([]broker.Delivery, error) {
	if f, ok := s.b.get.Load().(func(context.Context) error); ok {
		if err := f(ctx); err != nil {
			return nil, err
		}
	}
	return s.Session.TryGet(ctx, queue, n)
}

func TestStatsAsJSON(t *testing.T) {
	t.Parallel()
	const want = `{"published":1,"not_sent":2,"rejected":3,"unconfirmed":4,"outboxed":5,"outbox_dead":6,"received":7,"succeeded":8,` +
		`"discarded":9,"retried":10,"postponed":11,"suspected":12,"dead_lettered":13,"released":14,"lost":15,"abandoned":16,"replayed":17,"reconnects":18}`
	var st dispatcher.Stats
	for i, v := 0, reflect.ValueOf(&st).Elem(); i < v.NumField(); i++ {
		v.Field(i).SetInt(int64(i + 1))
	}
	if got, err := json.Marshal(st); err != nil || string(got) != want {
		t.Errorf("got %s, %v", got, err)
	}
}

// tardy is a broker that reports its delays as late.
type tardy struct{ broker.Broker }

type tardySession struct{ broker.Session }

func (b tardy) Open(ctx context.Context) (broker.Session, error) {
	s, err := b.Broker.Open(ctx)
	return tardySession{s}, err
}

func (tardySession) Status() broker.Status { return broker.Status{Delays: "since noon"} }

func TestHealthSaysThatDelaysAreLate(t *testing.T) {
	t.Parallel()
	late := newRig(t, func(c *dispatcher.ServerConfig) { c.Broker = tardy{c.Broker} })
	if h := late.server.Health(t.Context()); h.Delays != "since noon" || !h.OK() {
		t.Errorf("health %+v", h)
	}
	if h := newRig(t).server.Health(t.Context()); h.Delays != "" {
		t.Errorf("health %+v", h)
	}
}

// If one queue does not answer, Health still counts the other queues, even after many calls. The session has channels
// left.
func TestHealthWithAQueueThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	other := r.name + ".other"
	r.sweep(other, other+".dead", other+".suspects")
	r.serve(r.ownQueue)
	r.worker(tasks{"f": fn(func() {})}) // "w" sorts before the other worker's name
	w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "x", Queue: other}, tasks{"f": fn(func() {})})
	if err != nil {
		t.Fatal(err)
	}
	suspend(t, r.name)
	for range 40 { // more calls than can run at a time
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		r.server.Health(ctx)
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	h := r.server.Health(ctx)
	if a, b := h.Workers[0], h.Workers[1]; a.Ready != -1 || a.Dead != 0 || b.Ready != 0 || b.Dead != 0 {
		t.Errorf("counted %d and %d, %d and %d, want -1 and 0, 0 and 0", a.Ready, a.Dead, b.Ready, b.Dead)
	}
	if err := w.Start(r.server); err != nil {
		t.Errorf("starting a worker of another queue: %v", err)
	}
}

// With three channels, none is reserved for suspects, and two workers use all that are available. Once there is a
// suspect, the server is not healthy.
func TestSuspectsWithoutAChannelAreToldByHealth(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	r.serve(r.ownQueue, func(c *dispatcher.ServerConfig) { c.AMQPConnectionString += "?channel_max=3" })
	for _, name := range []string{"a", "b"} {
		w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: name, Queue: r.name}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Start(r.server); err != nil {
			t.Fatal(err)
		}
	}
	if h := r.server.Health(t.Context()); h.Channels == "" || !h.OK() {
		t.Errorf("without suspects: OK %t, channels %q", h.OK(), h.Channels)
	}
	// The worker fetches a suspect only if there is one.
	if err := r.raw().PublishWithContext(t.Context(), "", r.name+".suspects", false, false, amqp.Publishing{Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	eventuallyWithin(t, 2*patience, "the server is not healthy", func() bool {
		h := r.server.Health(t.Context())
		return !h.OK() && strings.Contains(h.Workers[0].Suspects+h.Workers[1].Suspects, "the connection has 3 channels")
	})
}
