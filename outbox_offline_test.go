package dispatcher_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// offlineRig is newRig with a broker that cannot be reached yet.
func offlineRig(t *testing.T, edit ...func(*dispatcher.ServerConfig)) *rig {
	t.Helper()
	down := func(c *dispatcher.ServerConfig) {
		c.Broker.(*brokertest.Chaos).FailOpen(errors.New("no route to host"))
	}
	return newRig(t, append([]func(*dispatcher.ServerConfig){down}, edit...)...)
}

func TestAServerWithAnOutboxStartsWithoutAConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		events := make(chan dispatcher.ConnectionEvent, 10)
		began := time.Now()
		r := offlineRig(t, withQueue, plainOutbox, func(c *dispatcher.ServerConfig) {
			c.Hooks.Disconnected = func(e dispatcher.ConnectionEvent) { events <- e }
			c.Hooks.Reconnected = func(e dispatcher.ConnectionEvent) { events <- e }
		})
		if took := time.Since(began); took != 0 || r.chaos.Opens() != 1 {
			t.Errorf("NewServer took %v and %d tries", took, r.chaos.Opens())
		}
		if e := <-events; e.State != dispatcher.StateConnecting || e.Err == nil {
			t.Errorf("event %+v", e)
		}
		h := r.server.Health(t.Context())
		if h.State != dispatcher.StateConnecting || h.LastError == nil || h.OK() {
			t.Errorf("health %+v", h)
		}
		kept(t, "publish", r.server.Publish(named("1", "jobs")))
		kept(t, "publish", r.server.PublishContext(t.Context(), named("2", "jobs")))
		if _, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "jobs"}, nil); !errors.Is(err, dispatcher.ErrDisconnected) {
			t.Errorf("new worker: %v", err)
		}
		<-time.After(time.Hour)
		if n := r.server.Stats().Reconnects; n != 0 {
			t.Errorf("%d reconnects before the first connection", n)
		}
		if ago := time.Since(r.server.Health(t.Context()).LastErrorAt); ago > 2*time.Second { // it tries every second, ± 20 %
			t.Errorf("the last failed try is dated %v ago", ago)
		}
		up(r)
		drained(t, r)
		if e := <-events; e.State != dispatcher.StateConnected {
			t.Errorf("event %+v", e)
		}
		if got := strings.Join(r.ids("jobs"), " "); got != "1 2" {
			t.Errorf("got %s", got)
		}
		if log := r.log.String(); !strings.Contains(log, "info: connected outage=1h0m") || strings.Contains(log, "again outage") {
			t.Error("the log does not tell the first connection from later ones")
		}
		r.worker("w", tasks{"n": fn(func() {})})
		select {
		case <-r.givenUp:
			t.Error("the channel is closed")
		default:
		}
	})
}

func TestWhatCannotPassIsAnErrorAlsoWithAnOutbox(t *testing.T) {
	t.Parallel()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		fail func(*brokertest.Chaos)
		want error
	}{
		"permanent": {t.Context(), func(c *brokertest.Chaos) { c.FailOpen(broker.ErrPermanent) }, broker.ErrPermanent},
		"rejected":  {t.Context(), func(c *brokertest.Chaos) { c.RefuseDeclare(broker.ErrRejected) }, broker.ErrRejected},
		"canceled":  {canceled, func(c *brokertest.Chaos) { c.FailOpen(errors.New("down")) }, context.Canceled},
	} {
		chaos := brokertest.NewChaos(memory.New(), nil)
		c.fail(chaos)
		s, lost, err := dispatcher.NewServerContext(c.ctx, &dispatcher.ServerConfig{
			Broker: chaos, Exchange: "e", DefaultRoutingKey: "k", ReconnectionRetriesForever: true, Logger: &recorder{},
			Outbox: dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{}),
		})
		if s != nil || lost != nil || !errors.Is(err, c.want) || chaos.Opens() != 1 {
			t.Errorf("%s: %v, %v, %v after %d tries", name, s, lost, err, chaos.Opens())
		}
	}
}

// silentBroker does not answer Open.
type silentBroker struct{ broker.Broker }

func (silentBroker) Open(ctx context.Context) (broker.Session, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestADeadlineOrHalfAMinuteEndsTheFirstTry(t *testing.T) {
	t.Parallel()
	for _, patience := range []time.Duration{5 * time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			began := time.Now()
			s, _, err := dispatcher.NewServerContext(ctx, &dispatcher.ServerConfig{
				Broker: silentBroker{}, Exchange: "e", DefaultRoutingKey: "k", ReconnectionRetriesForever: true, Logger: &recorder{},
				Outbox: dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{}),
			})
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took != min(patience, 30*time.Second) {
				t.Errorf("took %v", took)
			}
			kept(t, "publish", s.Publish(dispatcher.NewTask("n")))
			began = time.Now()
			s.Close()
			if took := time.Since(began); took > 45*time.Second {
				t.Errorf("Close took %v", took)
			}
		})
	}
}

func TestTheFirstOutageHasItsRetriesAndIsGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := offlineRig(t, withQueue, plainOutbox, func(c *dispatcher.ServerConfig) {
			c.ReconnectionRetriesForever, c.ReconnectionRetries = false, 3
		})
		kept(t, "publish", r.server.Publish(named("1", "jobs")))
		<-r.givenUp
		if n := r.chaos.Opens(); n != 4 {
			t.Errorf("dialled %d times, want 1 + 3", n)
		}
		if h := r.server.Health(t.Context()); h.State != dispatcher.StateGivenUp {
			t.Errorf("health %+v", h)
		}
		outcome(t, "after that", r.server.Publish(named("2", "jobs")), dispatcher.ErrServerClosed)
		if err := r.server.Shutdown(t.Context()); !errors.Is(err, dispatcher.ErrOutboxNotEmpty) {
			t.Errorf("shutdown: %v", err)
		}
	})
	// A start that failed once is no reason to give a later outage fewer retries.
	synctest.Test(t, func(t *testing.T) {
		r := offlineRig(t, withQueue, plainOutbox, func(c *dispatcher.ServerConfig) {
			c.ReconnectionRetriesForever, c.ReconnectionRetries = false, 3
		})
		up(r)
		eventuallyWithin(t, time.Minute, "connected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnected })
		before := r.chaos.Opens()
		down(r, true)
		<-r.givenUp
		if n := r.chaos.Opens() - before; n != 4 {
			t.Errorf("dialled %d times, want 1 + 3", n)
		}
	})
}

// After the first connect a refused declaration stops nobody: the server was promised, and its tasks wait in the outbox.
func TestARefusedDeclarationAfterAnOfflineStartIsShown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := offlineRig(t, withQueue, plainOutbox)
		r.chaos.FailQueue("jobs", broker.ErrRejected)
		up(r)
		eventuallyWithin(t, time.Minute, "connected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnected })
		if h := r.server.Health(t.Context()); len(h.Undeclared) != 1 || h.Undeclared[0].Name != "jobs" {
			t.Errorf("undeclared %+v", h.Undeclared)
		}
		r.chaos.FailQueue("jobs", nil)
	})
}

// durableOutbox says that it outlives the process.
type durableOutbox struct{ dispatcher.Outbox }

func (durableOutbox) Durable() bool { return true }

// What is left in a durable outbox is for the next process: a deploy during an outage neither waits nor fails.
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
					t.Errorf("shutdown: %v", err)
				}
				if took := time.Since(began); took != 0 {
					t.Errorf("shutdown took %v", took)
				}
				says := func(r *rig, want ...string) {
					t.Helper()
					for _, line := range want {
						if strings.Count(r.log.String(), line) != 1 {
							t.Errorf("%q is not once in the log:\n%s", line, r.log)
						}
					}
				}
				says(r, "info: tasks go to the outbox", "warn: tasks are left in the outbox for the next start entries=2 dead=0")

				next := newRig(t, withQueue, with)
				drained(t, next)
				if got := strings.Join(next.ids("jobs"), " "); got != "1 2" {
					t.Errorf("got %s", got)
				}
				synctest.Wait()
				says(next, "info: tasks are in the outbox since an earlier start entries=2 dead=0", "info: the outbox is empty again entries=2")

				// While the broker takes tasks, it is emptied.
				down(next, true)
				kept(t, "publish", next.server.Publish(named("3", "jobs")))
				next.chaos.HoldConfirms(true)
				down(next, false)
				time.AfterFunc(5*time.Second, func() { next.chaos.HoldConfirms(false) })
				began = time.Now()
				if err := next.server.Shutdown(t.Context()); err != nil || strings.Contains(next.log.String(), "left in the outbox") {
					t.Errorf("shutdown: %v, and the log is\n%s", err, next.log)
				}
				if took := time.Since(began); took != 5*time.Second {
					t.Errorf("shutdown took %v", took)
				}
			})
		})
	}
}

// A broker that begins to block while a durable outbox is being emptied ends that, too.
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
		<-time.After(10 * time.Minute) // the pauses between its tries are long by now
		const begins = 2500 * time.Millisecond
		time.AfterFunc(begins, func() { r.chaos.Block(true) })
		began := time.Now()
		if err := r.server.Shutdown(t.Context()); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if took := time.Since(began); took < begins || took > begins+time.Second {
			t.Errorf("shutdown took %v", took)
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
		ctx     time.Duration // 0 = no deadline; negative: Close, with that ShutdownTimeout
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

// Such a broker must not be dialled without pauses because a shutdown is in a hurry.
func TestAShutdownThatIsInAHurryKeepsThePauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := offlineRig(t, plainOutbox, func(c *dispatcher.ServerConfig) {
			c.Broker = dropping{c.Broker, c.Broker.(*brokertest.Chaos).Kill}
		})
		kept(t, "publish", r.server.Publish(named("1", "jobs")))
		r.chaos.Block(true) // or it would be refused, and the outbox be empty
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
