package systemtest_test

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
			t.Errorf("NewWorker: %v", err)
		}
		<-time.After(time.Hour)
		if n := r.server.Stats().Reconnects; n != 0 {
			t.Errorf("%d reconnects before the first connection", n)
		}
		if ago := time.Since(r.server.Health(t.Context()).LastErrorAt); ago > 2*time.Second { // it tries every second, ±20 %
			t.Errorf("LastErrorAt is %v ago, want the last failed connect", ago)
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
			t.Error("the log does not distinguish the first connection from later ones")
		}
		r.worker("w", tasks{"n": fn(func() {})})
		select {
		case <-r.givenUp:
			t.Error("the server reported the connection as given up")
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

// silentBroker never answers Open.
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
			t.Errorf("health %+v, want the connection given up", h)
		}
		outcome(t, "after the connection was given up", r.server.Publish(named("2", "jobs")), dispatcher.ErrServerClosed)
		if err := r.server.Shutdown(t.Context()); !errors.Is(err, dispatcher.ErrOutboxNotEmpty) {
			t.Errorf("Shutdown: %v", err)
		}
	})
	// A failed start must not give a later outage fewer retries.
	synctest.Test(t, func(t *testing.T) {
		r := offlineRig(t, withQueue, plainOutbox, func(c *dispatcher.ServerConfig) {
			c.ReconnectionRetriesForever, c.ReconnectionRetries = false, 3
		})
		up(r)
		eventuallyWithin(t, time.Minute, "the server is connected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnected })
		before := r.chaos.Opens()
		down(r, true)
		<-r.givenUp
		if n := r.chaos.Opens() - before; n != 4 {
			t.Errorf("dialled %d times, want 1 + 3", n)
		}
	})
}

// After the first connect, a refused declaration does not stop the server: its tasks wait in the outbox.
func TestARefusedDeclarationAfterAnOfflineStartIsShown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := offlineRig(t, withQueue, plainOutbox)
		r.chaos.FailQueue("jobs", broker.ErrRejected)
		up(r)
		eventuallyWithin(t, time.Minute, "the server is connected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnected })
		if h := r.server.Health(t.Context()); len(h.Undeclared) != 1 || h.Undeclared[0].Name != "jobs" {
			t.Errorf("undeclared %+v", h.Undeclared)
		}
		r.chaos.FailQueue("jobs", nil)
	})
}
