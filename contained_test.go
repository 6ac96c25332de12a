package dispatcher_test

import (
	"context"
	"errors"
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

// rude is an outbox whose methods behave badly so many times before they do what they should.
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

// worse is a value, and an error, whose own methods panic.
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

// returning is an outbox with an error whose methods panic.
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

// panickingLog panics in each of its methods.
type panickingLog struct{ calls atomic.Int64 }

func (l *panickingLog) panic() {
	l.calls.Add(1)
	panic("log")
}

func (l *panickingLog) Info(...interface{})           { l.panic() }
func (l *panickingLog) Infof(string, ...interface{})  { l.panic() }
func (l *panickingLog) Debug(...interface{})          { l.panic() }
func (l *panickingLog) Debugf(string, ...interface{}) { l.panic() }
func (l *panickingLog) Error(...interface{})          { l.panic() }
func (l *panickingLog) Errorf(string, ...interface{}) { l.panic() }

func TestALogThatPanicsHarmsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := &panickingLog{}
		back := make(chan struct{}, 1)
		r := newRig(t, withQueue, plainOutbox, func(c *dispatcher.ServerConfig) {
			c.Logger, c.DebugMode = log, true
			c.Retry = &dispatcher.RetryPolicy{MaxAttempts: 2, InitialInterval: time.Millisecond}
			c.Hooks.Reconnected = func(dispatcher.ConnectionEvent) { back <- struct{}{} }
			c.Hooks.Started = func(dispatcher.StartEvent) { panic("hook") }
		})
		ran := make(chan string, 10)
		r.worker("w", tasks{
			"fails":  fn(func() error { ran <- "fails"; return errors.New("x") }),
			"panics": fn(func() { ran <- "panics"; panic("task") }),
			"fine":   fn(func() { ran <- "fine" }),
		}, limit(1))
		r.publish("fails")
		r.publish("panics")
		r.publish("unknown")
		for range 4 { // two attempts each
			wait(t, ran, "attempt")
		}
		r.dead(2)
		r.chaos.Kill()
		wait(t, back, "reconnect")
		down(r, true)
		kept(t, "publish", r.server.Publish(dispatcher.NewTask("fine")))
		up(r)
		if name := wait(t, ran, "task"); name != "fine" {
			t.Errorf("%q ran", name)
		}
		within(t, patience, "Close", r.server.Close)
		if log.calls.Load() < 8 {
			t.Errorf("the log was called %d times", log.calls.Load())
		}
	})
}

func TestHooksThatExitHarmNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		exit := func() { calls.Add(1); runtime.Goexit() }
		r := newRig(t, withQueue, plainOutbox, script(func(m broker.Message) error {
			if m.ID == "bad" {
				return broker.ErrRejected
			}
			return nil
		}), func(c *dispatcher.ServerConfig) {
			c.Hooks = dispatcher.Hooks{
				Disconnected:  func(dispatcher.ConnectionEvent) { exit() },
				Reconnected:   func(dispatcher.ConnectionEvent) { exit() },
				WorkerStarted: func(dispatcher.WorkerEvent) { exit() },
				WorkerStopped: func(dispatcher.WorkerEvent) { exit() },
				OutboxRefused: func(dispatcher.PublishEvent) { exit() },
				Published: func(e dispatcher.PublishEvent) {
					if !errors.Is(e.Err, dispatcher.ErrInOutbox) { // that is on the goroutine of this test
						exit()
					}
				},
			}
		})
		for range 2 {
			down(r, true)
			kept(t, "publish", r.server.Publish(named("bad", "jobs")))
			kept(t, "publish", r.server.Publish(named("good", "jobs")))
			up(r)
			drained(t, r)
		}
		if ids := r.ids("jobs"); len(ids) != 2 {
			t.Errorf("sent %v", ids)
		}
		r.worker("w", tasks{"n": fn(func() {})})
		within(t, patience, "Close", r.server.Close)
		if n := calls.Load(); n != 2*(2+2+1)+2 {
			t.Errorf("%d calls of hooks", n)
		}
	})
}
