package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

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
					t.Errorf("sent %d times, want 1: a known outcome must survive a failing outbox", n)
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
				t.Errorf("%s: %v does not wrap the outbox's error", name, err)
			}
		}
		outbox.set("", nil)
		up(r)
		drained(t, r) // the carrier checks for entries that may be stored
		if got := strings.Join(r.ids("jobs"), ";"); got != "unknown, and so" {
			t.Errorf("got %s", got)
		}
		if err := r.server.Publish(named("direct", "jobs")); err != nil {
			t.Errorf("the outbox is empty, but a direct publish failed: %v", err)
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
			t.Errorf("the key has no entries, but a direct publish failed: %v", err)
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

// rude is an outbox. Each of its methods first misbehaves a given number of times, and then works.
type rude struct {
	dispatcher.Outbox
	behave func()
	left   map[string]*atomic.Int64
}

func newRude(behave func(), times int64) *rude {
	o := &rude{Outbox: dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{}), behave: behave, left: map[string]*atomic.Int64{}}
	for _, method := range []string{"Add", "Oldest", "Remove", "Bury", "Keys", "Counts"} {
		o.left[method] = new(atomic.Int64)
		o.left[method].Store(times)
	}
	return o
}

func (o *rude) enter(method string) {
	if o.left[method].Add(-1) >= 0 {
		o.behave()
	}
}

func (o *rude) Add(ctx context.Context, e dispatcher.OutboxEntry) error {
	o.enter("Add")
	return o.Outbox.Add(ctx, e)
}

func (o *rude) Oldest(ctx context.Context, key string) (dispatcher.OutboxEntry, bool, error) {
	o.enter("Oldest")
	return o.Outbox.Oldest(ctx, key)
}

func (o *rude) Remove(ctx context.Context, e dispatcher.OutboxEntry) error {
	o.enter("Remove")
	return o.Outbox.Remove(ctx, e)
}

func (o *rude) Bury(ctx context.Context, e dispatcher.OutboxEntry) error {
	o.enter("Bury")
	return o.Outbox.Bury(ctx, e)
}

func (o *rude) Keys(ctx context.Context) ([]string, error) {
	o.enter("Keys")
	return o.Outbox.Keys(ctx)
}

func (o *rude) Counts(ctx context.Context) (dispatcher.OutboxCounts, error) {
	o.enter("Counts")
	return o.Outbox.Counts(ctx)
}

// worse is a value and an error whose own methods panic.
type worse struct{}

func (worse) Error() string  { panic(worse{}) }
func (worse) String() string { panic(worse{}) }
func (worse) Is(error) bool  { panic("Is") }

func TestAnOutboxThatPanicsOrExitsCountsAsFailed(t *testing.T) {
	t.Parallel()
	for name, behave := range map[string]func(){
		"panic": func() { panic("boom") }, "worse panic": func() { panic(worse{}) }, "goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				outbox := newRude(behave, 3)
				outbox.left["Keys"].Store(0)
				r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) { c.Outbox = outbox })
				down(r, true)
				for range 3 {
					outcome(t, "publish", r.server.Publish(dispatcher.NewTask("n")), dispatcher.ErrUnconfirmed)
				}
				kept(t, "publish", r.server.Publish(named("1", "jobs")))
				if h := r.server.Health(t.Context()).Outbox; h.Entries != -1 || h.LastError == nil {
					t.Errorf("health %+v", h)
				}
				up(r)
				<-time.After(time.Minute)
				if ids := r.ids("jobs"); len(ids) != 1 || ids[0] != "1" {
					t.Errorf("sent %v", ids)
				}
				eventuallyWithin(t, time.Hour, "the outbox is empty", func() bool { return r.server.Health(t.Context()).Outbox.Entries == 0 })
				within(t, patience, "Close", r.server.Close)
			})
		})
	}
	t.Run("at the beginning", func(t *testing.T) {
		t.Parallel()
		outbox := newRude(func() { panic("boom") }, 1)
		cfg := &dispatcher.ServerConfig{Broker: memory.New(), Exchange: "jobs", DefaultRoutingKey: "jobs", Outbox: outbox, Logger: &recorder{}}
		if _, _, err := dispatcher.NewServer(cfg); err == nil || !strings.Contains(err.Error(), "boom") {
			t.Errorf("NewServer: %v", err)
		}
	})
}

// returning is an outbox whose Add returns an error whose methods panic.
type returning struct{ dispatcher.Outbox }

func (returning) Add(context.Context, dispatcher.OutboxEntry) error { return worse{} }

func TestAnErrorOfAnOutboxMayPanic(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) {
			c.Outbox = returning{dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})}
		})
		down(r, true)
		outcome(t, "publish", r.server.Publish(dispatcher.NewTask("n")), dispatcher.ErrUnconfirmed)
	})
}
