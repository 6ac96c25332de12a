package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
)

// withOutbox gives the server an outbox in memory. If cfg is zero, the outbox has its defaults.
func withOutbox(cfg dispatcher.MemoryOutboxConfig) func(*dispatcher.ServerConfig) {
	return func(c *dispatcher.ServerConfig) { c.Outbox = dispatcher.NewMemoryOutbox(cfg) }
}

var plainOutbox = withOutbox(dispatcher.MemoryOutboxConfig{})

// withQueues declares the queues k0 to k<n-1>, each bound to a key of its name.
func withQueues(n int) func(*dispatcher.ServerConfig) {
	return func(c *dispatcher.ServerConfig) {
		for i := range n {
			c.InitQueues = append(c.InitQueues, dispatcher.Queue{Name: fmt.Sprint("k", i), BindingKeys: []string{fmt.Sprint("k", i)}})
		}
	}
}

// kept checks that a publish went to the outbox and has no other outcome.
func kept(t *testing.T, what string, err error) {
	t.Helper()
	outcome(t, what, err, dispatcher.ErrInOutbox)
}

// drained waits until the outbox has no entries.
func drained(t *testing.T, r *rig) {
	t.Helper()
	eventuallyWithin(t, time.Hour, "the outbox is empty", func() bool {
		h := r.server.Health(t.Context()).Outbox
		return h.Entries == 0 && h.LastError == nil
	})
}

func named(uuid, key string) *dispatcher.Task {
	return &dispatcher.Task{UUID: uuid, Name: "n", RoutingKey: key}
}

// offlineRig is newRig with a broker that cannot be reached yet.
func offlineRig(t *testing.T, edit ...func(*dispatcher.ServerConfig)) *rig {
	t.Helper()
	down := func(c *dispatcher.ServerConfig) {
		c.Broker.(*brokertest.Chaos).FailOpen(errors.New("no route to host"))
	}
	return newRig(t, append([]func(*dispatcher.ServerConfig){down}, edit...)...)
}

// outboxOf returns an outbox with these entries, as an earlier server left it.
func outboxOf(t *testing.T, entries ...dispatcher.OutboxEntry) *dispatcher.MemoryOutbox {
	t.Helper()
	o := dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})
	for _, e := range entries {
		e.Name, e.Body = "n", []byte("{}")
		if err := o.Add(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// failing is an outbox whose store fails as a test says.
type failing struct {
	dispatcher.Outbox
	fails atomic.Pointer[map[string]error] // by method
	reads atomic.Int64                     // calls of Oldest
	gate  chan struct{}                    // if not nil, Add of the uuid "slow" waits until gate is closed
}

func (o *failing) set(method string, err error) { o.fails.Store(&map[string]error{method: err}) }

func (o *failing) err(method string) error {
	if m := o.fails.Load(); m != nil {
		return (*m)[method]
	}
	return nil
}

func (o *failing) Add(ctx context.Context, e dispatcher.OutboxEntry) error {
	if o.gate != nil && e.UUID == "slow" {
		<-o.gate
	}
	if err := o.err("Add, and it is kept"); err != nil {
		return errors.Join(o.Outbox.Add(ctx, e), err)
	}
	if err := o.err("Add"); err != nil {
		return err
	}
	return o.Outbox.Add(ctx, e)
}

func (o *failing) Oldest(ctx context.Context, key string) (dispatcher.OutboxEntry, bool, error) {
	o.reads.Add(1)
	if err := o.err("Oldest"); err != nil {
		return dispatcher.OutboxEntry{}, false, err
	}
	return o.Outbox.Oldest(ctx, key)
}

func (o *failing) Remove(ctx context.Context, e dispatcher.OutboxEntry) error {
	if err := o.err("Remove"); err != nil {
		return err
	}
	return o.Outbox.Remove(ctx, e)
}

func (o *failing) Bury(ctx context.Context, e dispatcher.OutboxEntry) error {
	if err := o.err("Bury"); err != nil {
		return err
	}
	return o.Outbox.Bury(ctx, e)
}

func (o *failing) Keys(ctx context.Context) ([]string, error) {
	if err := o.err("Keys"); err != nil {
		return nil, err
	}
	return o.Outbox.Keys(ctx)
}

func (o *failing) Counts(ctx context.Context) (dispatcher.OutboxCounts, error) {
	if err := o.err("Counts"); err != nil {
		return dispatcher.OutboxCounts{}, err
	}
	return o.Outbox.Counts(ctx)
}
