package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
)

func TestShutdownSendsWhatIsInTheOutbox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueues(100), plainOutbox)
		down(r, true)
		for i := range 1000 {
			kept(t, "publish", r.server.Publish(named(fmt.Sprint(i), fmt.Sprint("k", i%100))))
		}
		up(r)
		eventuallyWithin(t, time.Minute, "the server is connected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnected })
		if err := r.server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		n := 0
		for k := range 100 {
			n += len(r.ids(fmt.Sprint("k", k)))
		}
		if n != 1000 {
			t.Errorf("%d messages", n)
		}
	})
}

func TestShutdownSaysWhatIsLeftAndAnotherServerSendsIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		outbox := dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})
		use := func(c *dispatcher.ServerConfig) { c.Outbox = outbox }
		r := newRig(t, withQueues(2), use)
		down(r, true)
		for i := range 5 {
			kept(t, "publish", r.server.Publish(named(fmt.Sprint(i), fmt.Sprint("k", i%2))))
		}
		began := time.Now()
		err := r.server.Shutdown(context.Background())
		if !errors.Is(err, dispatcher.ErrOutboxNotEmpty) || !strings.Contains(err.Error(), "left in the outbox: 5") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("took %v, want PublishTimeout: the context has no deadline and no entry leaves", took)
		}
		r.server.Close()
		if log := r.log.String(); !strings.Contains(log, "left in the outbox: 5") {
			t.Errorf("Close does not log it: %s", log)
		}
		var ids []string
		for _, e := range outbox.Entries() {
			ids = append(ids, e.UUID)
		}
		if got := strings.Join(ids, " "); got != "0 1 2 3 4" {
			t.Errorf("entries %s", got)
		}
		up(r)
		server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
			Broker: r.chaos, Exchange: "jobs", DefaultRoutingKey: "jobs", Logger: r.log, Outbox: outbox,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		eventuallyWithin(t, time.Minute, "all entries are sent", func() bool { return server.Health(t.Context()).Outbox.Entries == 0 })
		if got := strings.Join(r.ids("k0"), " ") + "|" + strings.Join(r.ids("k1"), " "); got != "0 2 4|1 3" {
			t.Errorf("got %s", got)
		}
	})
}

// The context has no deadline and the broker does not progress. Once entries stop leaving, Shutdown waits no longer
// than one publish may take.
func TestShutdownIsBoundedWhileTheOutboxStandsStill(t *testing.T) {
	t.Parallel()
	for name, hold := range map[string]func(r *rig, on bool){
		"blocked":     func(r *rig, on bool) { r.chaos.Block(on) },
		"unconfirmed": func(r *rig, on bool) { r.chaos.HoldConfirms(on) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withQueue, plainOutbox)
				down(r, true)
				kept(t, "publish", r.server.Publish(named("1", "jobs")))
				hold(r, true)
				up(r)
				eventuallyWithin(t, time.Minute, "the server is connected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnected })
				synctest.Wait()
				began := time.Now()
				result := make(chan error, 1)
				go func() { result <- r.server.Shutdown(context.Background()) }()
				synctest.Wait()
				outcome(t, "publish during the shutdown", r.server.Publish(named("2", "jobs")), dispatcher.ErrServerClosed)
				err := <-result
				if took := time.Since(began); took < 30*time.Second || took > 70*time.Second {
					t.Errorf("took %v", took)
				}
				if !errors.Is(err, dispatcher.ErrOutboxNotEmpty) {
					t.Errorf("got %v", err)
				}
				hold(r, false)
			})
		})
	}
}

// Without a deadline, Shutdown sends the outbox as long as entries are leaving.
func TestShutdownWaitsForASlowOutboxAndNotLongForALostConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, plainOutbox, script(func(broker.Message) error { <-time.After(20 * time.Second); return nil }))
		down(r, true)
		for i := range 5 {
			kept(t, "publish", r.server.Publish(named(fmt.Sprint(i), "jobs")))
		}
		up(r)
		eventuallyWithin(t, time.Minute, "the server is connected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnected })
		if err := r.server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if got := strings.Join(r.ids("jobs"), " "); got != "0 1 2 3 4" {
			t.Errorf("got %s", got)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, plainOutbox)
		r.chaos.Block(true)
		kept(t, "publish", r.server.Publish(dispatcher.NewTask("n")))
		time.AfterFunc(5*time.Second, func() {
			r.chaos.FailOpen(errors.New("down"))
			r.chaos.Kill()
		})
		began := time.Now()
		if err := r.server.Shutdown(context.Background()); !errors.Is(err, dispatcher.ErrOutboxNotEmpty) {
			t.Error(err)
		}
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("took %v", took)
		}
		r.chaos.Block(false)
	})
}

func TestAnEntryInFlightIsWaitedForWhenTheServerCloses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, plainOutbox)
		down(r, true)
		kept(t, "publish", r.server.Publish(named("1", "jobs")))
		kept(t, "publish", r.server.Publish(named("2", "jobs")))
		r.chaos.HoldConfirms(true)
		up(r)
		eventuallyWithin(t, time.Minute, "the first entry is sent", func() bool { return r.inspect("jobs").Ready == 1 })
		time.AfterFunc(12*time.Second, func() { r.chaos.HoldConfirms(false) })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := r.server.Shutdown(ctx)
		if !errors.Is(err, dispatcher.ErrOutboxNotEmpty) || !strings.Contains(err.Error(), "outbox: 1,") {
			t.Errorf("got %v, want one left: the other entry was confirmed two seconds after the deadline", err)
		}
		if got := strings.Join(r.ids("jobs"), " "); got != "1" {
			t.Errorf("got %s", got)
		}
	})
}

func TestAGivenUpConnectionEndsTheOutboxAndSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		outbox := &failing{Outbox: dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})}
		r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) {
			c.ReconnectionRetriesForever, c.ReconnectionRetries, c.Outbox = false, 3, outbox
		})
		r.worker("w", tasks{"slow": fn(func() { <-time.After(20 * time.Second) })})
		r.publish("slow")
		synctest.Wait()
		down(r, true)
		kept(t, "publish", r.server.Publish(dispatcher.NewTask("n")))
		<-r.givenUp
		if n := outbox.reads.Load(); n > 2 {
			t.Errorf("the outbox was read %d times for one entry that could not be sent", n)
		}
		if log := r.log.String(); !strings.Contains(log, `"tasks are left in the outbox: 1, and 0 dead"`) {
			t.Errorf("log: %s", log)
		}
		outcome(t, "after the connection was given up", r.server.Publish(dispatcher.NewTask("n")), dispatcher.ErrServerClosed)
		up(r)
		if err := r.server.Shutdown(t.Context()); !errors.Is(err, dispatcher.ErrOutboxNotEmpty) {
			t.Errorf("Shutdown: %v", err)
		}
	})
}

// durableOutbox reports that it outlives the process.
type durableOutbox struct{ dispatcher.Outbox }

func (durableOutbox) Durable() bool { return true }

// The next process sends what remains in a durable outbox. A deploy during an outage therefore neither waits nor fails.
func TestShutdownLeavesADurableOutboxAsItIs(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]func(*rig){
		"disconnected": func(r *rig) { down(r, true) },
		"blocked":      func(r *rig) { r.chaos.Block(true) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				outbox := durableOutbox{dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})}
				with := func(c *dispatcher.ServerConfig) { c.Outbox = outbox }
				r := newRig(t, withQueue, with)
				away(r)
				kept(t, "publish", r.server.Publish(named("1", "jobs")))
				kept(t, "publish", r.server.Publish(named("2", "jobs")))
				began := time.Now()
				if err := r.server.Shutdown(t.Context()); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
				if took := time.Since(began); took != 0 {
					t.Errorf("Shutdown took %v", took)
				}
				says := func(r *rig, want ...string) {
					t.Helper()
					for _, line := range want {
						if strings.Count(r.log.String(), line) != 1 {
							t.Errorf("the log does not have %q exactly once:\n%s", line, r.log)
						}
					}
				}
				says(r, "info: tasks go to the outbox", "warn: tasks remain in the outbox until the next start entries=2 dead=0")

				next := newRig(t, withQueue, with)
				drained(t, next)
				if got := strings.Join(next.ids("jobs"), " "); got != "1 2" {
					t.Errorf("got %s", got)
				}
				synctest.Wait()
				says(next, "info: the outbox has tasks from an earlier start entries=2 dead=0", "info: the outbox is empty again entries=2")

				// While the broker takes tasks, Shutdown empties a durable outbox.
				down(next, true)
				kept(t, "publish", next.server.Publish(named("3", "jobs")))
				next.chaos.HoldConfirms(true)
				down(next, false)
				time.AfterFunc(5*time.Second, func() { next.chaos.HoldConfirms(false) })
				began = time.Now()
				if err := next.server.Shutdown(t.Context()); err != nil || strings.Contains(next.log.String(), "left in the outbox") {
					t.Errorf("Shutdown: %v, and the log is\n%s", err, next.log)
				}
				if took := time.Since(began); took != 5*time.Second {
					t.Errorf("Shutdown took %v", took)
				}
			})
		})
	}
}

// If the broker begins to block while Shutdown empties a durable outbox, Shutdown stops waiting.
func TestShutdownLeavesADurableOutboxWhenTheBrokerBeginsToBlock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, script(func(broker.Message) error { return broker.ErrNacked }), func(c *dispatcher.ServerConfig) {
			c.Broker.(*scripted).candid = true
			c.Outbox = durableOutbox{dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})}
		})
		down(r, true)
		kept(t, "publish", r.server.Publish(named("1", "jobs")))
		down(r, false)
		<-time.After(10 * time.Minute) // the pauses between tries are long by now
		const begins = 2500 * time.Millisecond
		time.AfterFunc(begins, func() { r.chaos.Block(true) })
		began := time.Now()
		if err := r.server.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if took := time.Since(began); took < begins || took > begins+time.Second {
			t.Errorf("Shutdown took %v", took)
		}
	})
}

func TestShutdownConnectsToEmptyTheOutbox(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		start func(*testing.T, ...func(*dispatcher.ServerConfig)) *rig
		ctx   time.Duration // 0 = no deadline
		back  time.Duration // when the broker is back
	}{
		"never connected":        {offlineRig, time.Minute, 40 * time.Second},
		"lost":                   {newRig, time.Minute, 40 * time.Second},
		"no deadline":            {newRig, 0, 20 * time.Second},
		"in a pause of one hour": {newRig, time.Minute, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := c.start(t, withQueue, plainOutbox, func(cfg *dispatcher.ServerConfig) {
					if c.back == 0 {
						cfg.ReconnectionIntervalSeconds = 3600
					}
				})
				down(r, true)
				kept(t, "publish", r.server.Publish(named("1", "jobs")))
				kept(t, "publish", r.server.Publish(named("2", "jobs")))
				<-time.After(10 * time.Second)
				ctx := context.Background()
				if c.ctx > 0 {
					bounded, cancel := context.WithTimeout(ctx, c.ctx)
					defer cancel()
					ctx = bounded
				}
				if c.back == 0 {
					up(r)
				}
				time.AfterFunc(c.back, func() { up(r) })
				if err := r.server.Shutdown(ctx); err != nil {
					t.Error(err)
				}
				if got := strings.Join(r.ids("jobs"), " "); got != "1 2" {
					t.Errorf("got %s", got)
				}
			})
		})
	}
}

func TestShutdownIsBoundedWhileTheBrokerIsAway(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ctx     time.Duration // 0 = no deadline; negative = Close with this ShutdownTimeout
		retries int
		want    time.Duration // at most
		least   time.Duration
	}{
		"a deadline":  {ctx: 10 * time.Minute, retries: -1, least: 10 * time.Minute, want: 10*time.Minute + 15*time.Second},
		"no deadline": {retries: -1, least: 30 * time.Second, want: 30 * time.Second},
		"Close":       {ctx: -7 * time.Second, retries: -1, least: 7 * time.Second, want: 22 * time.Second},
		"given up":    {ctx: 10 * time.Minute, retries: 5, want: 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withQueue, plainOutbox, func(cfg *dispatcher.ServerConfig) {
					cfg.ShutdownTimeout = max(-c.ctx, 0)
					if c.retries >= 0 {
						cfg.ReconnectionRetriesForever, cfg.ReconnectionRetries = false, c.retries
					}
				})
				down(r, true)
				kept(t, "publish", r.server.Publish(named("1", "jobs")))
				began := time.Now()
				if c.ctx < 0 {
					r.server.Close()
				} else {
					ctx := context.Background()
					if c.ctx > 0 {
						bounded, cancel := context.WithTimeout(ctx, c.ctx)
						defer cancel()
						ctx = bounded
					}
					if err := r.server.Shutdown(ctx); !errors.Is(err, dispatcher.ErrOutboxNotEmpty) {
						t.Errorf("got %v", err)
					}
				}
				if took := time.Since(began); took < c.least || took > c.want {
					t.Errorf("took %v, want %v to %v", took, c.least, c.want)
				}
			})
		})
	}
}

// dropping is a broker that ends every session a moment after it was opened.
type dropping struct {
	broker.Broker
	drop func()
}

func (b dropping) Open(ctx context.Context) (broker.Session, error) {
	s, err := b.Broker.Open(ctx)
	if err == nil {
		time.AfterFunc(time.Millisecond, b.drop)
	}
	return s, err
}

// Even during a shutdown, the server must pause before it dials such a broker again.
func TestAShutdownThatIsInAHurryKeepsThePauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := offlineRig(t, plainOutbox, func(c *dispatcher.ServerConfig) {
			c.Broker = dropping{c.Broker, c.Broker.(*brokertest.Chaos).Kill}
		})
		kept(t, "publish", r.server.Publish(named("1", "jobs")))
		r.chaos.Block(true) // otherwise the entry would be refused, and the outbox would be empty
		up(r)
		before := r.chaos.Opens()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if err := r.server.Shutdown(ctx); !errors.Is(err, dispatcher.ErrOutboxNotEmpty) {
			t.Errorf("got %v", err)
		}
		r.chaos.Block(false)
		if n := r.chaos.Opens() - before; n < 10 || n > 60 {
			t.Errorf("dialled %d times in half a minute with an interval of a second", n)
		}
	})
}
