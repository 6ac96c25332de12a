package bolt_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/memory"
	"github.com/seed-416683c9/dispatcher/outbox/bolt"
)

// quiet is a Log that drops everything.
type quiet struct{}

func (quiet) Info(...interface{})           {}
func (quiet) Infof(string, ...interface{})  {}
func (quiet) Debug(...interface{})          {}
func (quiet) Debugf(string, ...interface{}) {}
func (quiet) Error(...interface{})          {}
func (quiet) Errorf(string, ...interface{}) {}

func config(b broker.Broker, o dispatcher.Outbox) *dispatcher.ServerConfig {
	return &dispatcher.ServerConfig{
		Broker: b, Exchange: "app", DefaultRoutingKey: "mail", InitQueues: []dispatcher.Queue{{Name: "mail", BindingKeys: []string{"mail"}}}, Logger: quiet{},
		ReconnectionRetriesForever: true, ReconnectionIntervalSeconds: 1, ShutdownTimeout: time.Millisecond, Outbox: o,
	}
}

// A server without a broker keeps the tasks, and a server of the next process sends them.
func TestTasksSurviveTheirProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "outbox.db")
	chaos := brokertest.NewChaos(memory.New(), nil)
	chaos.FailOpen(errors.New("no route to host"))
	outbox := open(t, path, bolt.Config{})
	server, _, err := dispatcher.NewServer(config(chaos, outbox))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range 50 {
		want = append(want, fmt.Sprint(i))
		task := &dispatcher.Task{UUID: want[i], Name: "send", Headers: map[string]interface{}{"n": int64(i)}}
		if err := server.Publish(task); !errors.Is(err, dispatcher.ErrInOutbox) {
			t.Fatal(err)
		}
	}
	server.Close()
	if err := outbox.Close(); err != nil {
		t.Fatal(err)
	}

	outbox = open(t, path, bolt.Config{})
	if n, err := outbox.Counts(t.Context()); err != nil || n.Entries != 50 {
		t.Fatalf("%+v, %v", n, err)
	}
	chaos.FailOpen(nil)
	server, _, err = dispatcher.NewServer(config(chaos, outbox))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil { // sends everything
		t.Error(err)
	}
	session, err := chaos.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close(context.Background())
	ds, err := session.TryGet(t.Context(), "mail", 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i, d := range ds {
		got = append(got, d.ID)
		if d.Headers["n"] != int64(i) || d.ContentType != "application/json" {
			t.Errorf("message %+v", d.Message)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// A running server sends a dead entry that a person retries. The outbox notifies it through the wrapper around the
// outboxes of users.
func TestARetriedDeadEntryIsSentByTheRunningServer(t *testing.T) {
	t.Parallel()
	outbox := open(t, filepath.Join(t.TempDir(), "outbox.db"), bolt.Config{})
	if err := outbox.Add(t.Context(), dispatcher.OutboxEntry{Exchange: "other", RoutingKey: "mail", UUID: "1", Name: "n", Body: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	mem := memory.New()
	refused := make(chan struct{}, 10)
	cfg := config(mem, outbox)
	cfg.ShutdownTimeout = 0
	cfg.Hooks.OutboxRefused = func(dispatcher.PublishEvent) { refused <- struct{}{} }
	server, _, err := dispatcher.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	<-refused // there is no exchange of that name
	dead, err := outbox.Dead(t.Context())
	if err != nil || len(dead) != 1 {
		t.Fatalf("%+v, %v", dead, err)
	}
	if found, err := outbox.RetryDead(t.Context(), dead[0]); !found || err != nil {
		t.Fatalf("%t, %v", found, err)
	}
	<-refused // sent again, without a publish
}

func TestCallsAfterCloseFail(t *testing.T) {
	t.Parallel()
	o := open(t, filepath.Join(t.TempDir(), "outbox.db"), bolt.Config{})
	var wg sync.WaitGroup
	var kept atomic.Int64
	for range 8 {
		wg.Go(func() {
			for {
				switch err := o.Add(context.Background(), dispatcher.OutboxEntry{RoutingKey: "k"}); {
				case err == nil:
					kept.Add(1)
				case errors.Is(err, dispatcher.ErrNotSent):
					return
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	for range 2 {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if _, _, err := o.Oldest(t.Context(), "k"); err == nil {
		t.Error("Oldest: no error")
	}
	if _, err := o.Keys(t.Context()); err == nil {
		t.Error("Keys: no error")
	}
}

func TestAnOutboxCannotBeMadeWithoutItsFolder(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "none", "outbox.db")
	if _, err := bolt.Open(path, bolt.Config{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// The bound in bytes counts all stored entries, including dead ones.
func TestTheBoundInBytes(t *testing.T) {
	t.Parallel()
	o := open(t, filepath.Join(t.TempDir(), "outbox.db"), bolt.Config{MaxBytes: 10_000})
	e := dispatcher.OutboxEntry{RoutingKey: "k", Body: make([]byte, 4000)}
	for range 2 {
		if err := o.Add(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Add(t.Context(), e); !errors.Is(err, dispatcher.ErrOutboxFull) {
		t.Errorf("got %v", err)
	}
	first, _, err := o.Oldest(t.Context(), "k")
	if err == nil {
		err = o.Bury(t.Context(), first)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Add(t.Context(), e); !errors.Is(err, dispatcher.ErrOutboxFull) {
		t.Errorf("with a dead entry: got %v", err)
	}
	if _, err := o.RemoveDead(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if err := o.Add(t.Context(), e); err != nil {
		t.Error(err)
	}
}

// Concurrent calls share their syncs. See commit.go.
func TestManyEntriesAreOpenedAtOnce(t *testing.T) {
	t.Parallel()
	const goroutines, each = 1000, 100
	path := filepath.Join(t.TempDir(), "outbox.db")
	o := open(t, path, bolt.Config{})
	began := time.Now()
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				e := dispatcher.OutboxEntry{
					Exchange: "app", RoutingKey: fmt.Sprint("k", g%100), UUID: fmt.Sprint(g, "-", i), Name: "send", ContentType: "application/json", Body: make([]byte, 400), AcceptedAt: time.Now(),
				}
				if err := o.Add(context.Background(), e); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	added := time.Since(began)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	o = open(t, path, bolt.Config{})
	opened := time.Since(began)
	began = time.Now()
	keys, err := o.Keys(t.Context())
	listed := time.Since(began)
	if n, counted := o.Counts(t.Context()); counted != nil || err != nil || n.Entries != goroutines*each || len(keys) != 100 {
		t.Errorf("%+v and %d keys, %v, %v", n, len(keys), counted, err)
	}
	t.Logf("FIGURES %d entries: added in %v, opened in %v, keys listed in %v, file of %d MB", goroutines*each,
		added.Round(time.Millisecond), opened.Round(time.Millisecond), listed.Round(time.Microsecond), info.Size()>>20)
}
