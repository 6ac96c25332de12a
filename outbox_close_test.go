package dispatcher_test

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
		eventuallyWithin(t, time.Minute, "connected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnected })
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
			t.Errorf("took %v, want PublishTimeout: the context has no deadline and nothing leaves", took)
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
		eventuallyWithin(t, time.Minute, "all is sent", func() bool { return server.Health(t.Context()).Outbox.Entries == 0 })
		if got := strings.Join(r.ids("k0"), " ") + "|" + strings.Join(r.ids("k1"), " "); got != "0 2 4|1 3" {
			t.Errorf("got %s", got)
		}
	})
}

// No bound in the context, and a broker that stands still: what has stopped leaving is not waited for longer than a publish.
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
				eventuallyWithin(t, time.Minute, "connected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnected })
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

// As long as entries are leaving, a shutdown without a bound sends them.
func TestShutdownWaitsForASlowOutboxAndNotLongForALostConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, plainOutbox, script(func(broker.Message) error { <-time.After(20 * time.Second); return nil }))
		down(r, true)
		for i := range 5 {
			kept(t, "publish", r.server.Publish(named(fmt.Sprint(i), "jobs")))
		}
		up(r)
		eventuallyWithin(t, time.Minute, "connected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnected })
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
		eventuallyWithin(t, time.Minute, "it is sent", func() bool { return r.inspect("jobs").Ready == 1 })
		time.AfterFunc(12*time.Second, func() { r.chaos.HoldConfirms(false) })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := r.server.Shutdown(ctx)
		if !errors.Is(err, dispatcher.ErrOutboxNotEmpty) || !strings.Contains(err.Error(), "outbox: 1,") {
			t.Errorf("got %v, want one left: the other was confirmed two seconds after the time was up", err)
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
		if log := r.log.String(); !strings.Contains(log, `"tasks are left in the outbox: 1, and 0 dead ones"`) {
			t.Errorf("log: %s", log)
		}
		outcome(t, "after that", r.server.Publish(dispatcher.NewTask("n")), dispatcher.ErrServerClosed)
		up(r)
		if err := r.server.Shutdown(t.Context()); !errors.Is(err, dispatcher.ErrOutboxNotEmpty) {
			t.Errorf("shutdown: %v", err)
		}
	})
}
