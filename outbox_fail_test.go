package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// failing is an outbox whose store fails as a test says.
type failing struct {
	dispatcher.Outbox
	fails atomic.Pointer[map[string]error] // by method
	reads atomic.Int64                     // calls of Oldest
	gate  chan struct{}                    // if not nil, an Add of the uuid "slow" waits until it is closed
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

func TestAnOutboxThatFailsIsAskedAgain(t *testing.T) {
	t.Parallel()
	broken := errors.New("disk on fire")
	for method, id := range map[string]string{"Oldest": "good", "Remove": "good", "Bury": "bad"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				outbox := &failing{Outbox: dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})}
				var sent atomic.Int64
				r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) { c.Outbox = outbox }, script(func(m broker.Message) error {
					sent.Add(1)
					if m.ID == "bad" {
						return broker.ErrRejected
					}
					return nil
				}))
				down(r, true)
				outbox.set(method, broken)
				kept(t, "publish", r.server.Publish(named(id, "jobs")))
				up(r)
				<-time.After(time.Hour)
				h := r.server.Health(t.Context())
				if h.OK() || h.Outbox.Entries != 1 || h.Outbox.Failing != 1 || !errors.Is(h.Outbox.LastError, broken) {
					t.Errorf("health %+v", h)
				}
				if tries := strings.Count(r.log.String(), broken.Error()); tries < 100 || tries > 300 {
					t.Errorf("%d tries in an hour, want pauses up to half a minute", tries)
				}
				outbox.set("", nil)
				eventuallyWithin(t, time.Hour, "the outbox is empty", func() bool { return r.server.Health(t.Context()).Outbox.Entries == 0 })
				synctest.Wait()
				if n := sent.Load(); n != 1 {
					t.Errorf("sent %d times: what is confirmed or refused is known, whatever the outbox does", n)
				}
				if h := r.server.Health(t.Context()); !h.OK() || !errors.Is(h.Outbox.LastError, broken) {
					t.Errorf("health %+v", h)
				}
			})
		})
	}
}

func TestTheOutcomeOfAPublishThatTheOutboxDoesNotTake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		outbox := &failing{Outbox: dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})}
		r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) { c.Outbox = outbox })
		down(r, true)
		broken := errors.New("disk on fire")
		for name, c := range map[string]struct {
			method    string
			err, want error
		}{
			"not kept":         {"Add", fmt.Errorf("%w: %w", dispatcher.ErrNotSent, broken), dispatcher.ErrNotSent},
			"never kept":       {"Add", fmt.Errorf("%w: %w", dispatcher.ErrRejected, broken), dispatcher.ErrRejected},
			"unknown":          {"Add", broken, dispatcher.ErrUnconfirmed},
			"unknown, and so":  {"Add, and it is kept", broken, dispatcher.ErrUnconfirmed},
			"unknown, by name": {"Add", fmt.Errorf("%w: %w", dispatcher.ErrUnconfirmed, broken), dispatcher.ErrUnconfirmed},
		} {
			outbox.set(c.method, c.err)
			err := r.server.Publish(named(name, "jobs"))
			outcome(t, name, err, c.want)
			if !errors.Is(err, broken) {
				t.Errorf("%s: %v does not say why", name, err)
			}
		}
		outbox.set("", nil)
		up(r)
		drained(t, r) // what may be there is looked for
		if got := strings.Join(r.ids("jobs"), ";"); got != "unknown, and so" {
			t.Errorf("got %s", got)
		}
		if err := r.server.Publish(named("direct", "jobs")); err != nil {
			t.Errorf("nothing is left, and still: %v", err)
		}
		outbox.set("Counts", broken)
		if h := r.server.Health(t.Context()); h.Outbox.Entries != -1 || h.Outbox.Dead != -1 || !errors.Is(h.Outbox.LastError, broken) {
			t.Errorf("health %+v", h)
		}
	})
}

func TestAKeyIsHeldWhileAnEntryIsBeingAdded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		outbox := &failing{Outbox: dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{}), gate: make(chan struct{})}
		r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) { c.Outbox = outbox })
		down(r, true)
		kept(t, "first", r.server.Publish(named("first", "jobs")))
		slow := make(chan error, 1)
		go func() { slow <- r.server.Publish(named("slow", "jobs")) }()
		synctest.Wait()
		up(r)
		drained(t, r)
		synctest.Wait()
		kept(t, "meanwhile", r.server.Publish(named("meanwhile", "jobs")))
		drained(t, r)
		close(outbox.gate)
		kept(t, "slow", <-slow)
		drained(t, r)
		synctest.Wait()
		if err := r.server.Publish(named("direct", "jobs")); err != nil {
			t.Errorf("the key is free: %v", err)
		}
		if got := strings.Join(r.ids("jobs"), " "); got != "first meanwhile slow direct" {
			t.Errorf("got %s", got)
		}
	})
}

func TestNewServerFailsIfTheOutboxCannotBeRead(t *testing.T) {
	t.Parallel()
	broken := errors.New("disk on fire")
	outbox := &failing{Outbox: dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})}
	outbox.set("Keys", broken)
	r := newRig(t)
	server, givenUp, err := dispatcher.NewServer(&dispatcher.ServerConfig{Broker: r.chaos, Exchange: "x", DefaultRoutingKey: "k", Logger: r.log, Outbox: outbox})
	if server != nil || givenUp != nil || !errors.Is(err, broken) {
		t.Errorf("got %v, %v", server, err)
	}
}
