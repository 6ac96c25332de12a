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

// In gofort/dispatcher, NewServer hung for ever here (D3).
func TestD3UnreachableBrokerIsAnErrorAfterTheRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		chaos := brokertest.NewChaos(memory.New(), nil)
		down := errors.New("no route to host")
		chaos.FailOpen(down)
		cfg := dispatcher.ServerConfig{
			Broker: chaos, Exchange: "e", DefaultRoutingKey: "k", Logger: &recorder{},
			ReconnectionRetries: 3, ReconnectionIntervalSeconds: 10,
		}
		began := time.Now()
		_, _, err := dispatcher.NewServer(&cfg)
		if !errors.Is(err, down) {
			t.Fatalf("got %v, want %v", err, down)
		}
		if chaos.Opens() != 4 {
			t.Errorf("dialled %d times, want 1 + 3", chaos.Opens())
		}
		if took := time.Since(began); took < 24*time.Second || took > 36*time.Second {
			t.Errorf("took %v, want three pauses of 10 s ± 20 %%", took)
		}
	})
}

// The zero value retries for ever after the first connection, but reports a wrong address at once.
func TestRetriesOfTheFirstConnectAndOfAnOutage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		retries     int
		forever     bool
		first, more int64 // tries of the first connect and of an outage; 0 = for ever
	}{
		{0, false, 1, 0}, {-1, false, 1, 1}, {2, false, 3, 3}, {0, true, 0, 0}, {-1, true, 0, 0}, {2, true, 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			chaos := brokertest.NewChaos(memory.New(), nil)
			cfg := &dispatcher.ServerConfig{
				Broker: chaos, Exchange: "e", DefaultRoutingKey: "k", Logger: &recorder{},
				ReconnectionRetries: c.retries, ReconnectionRetriesForever: c.forever,
			}
			down := errors.New("down")
			chaos.FailOpen(down)
			ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
			defer cancel()
			_, _, err := dispatcher.NewServerContext(ctx, cfg)
			if !errors.Is(err, down) || (ctx.Err() != nil) != (c.first == 0) || c.first > 0 && int64(chaos.Opens()) != c.first {
				t.Errorf("%+v: %d tries of the first connect, %v", c, chaos.Opens(), err)
			}
			chaos.FailOpen(nil)
			server, lost, err := dispatcher.NewServer(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			chaos.FailOpen(down)
			before := chaos.Opens()
			chaos.Kill()
			select {
			case <-lost:
			case <-time.After(24 * time.Hour):
			}
			tries := int64(chaos.Opens() - before)
			if given := server.Health(t.Context()).State == dispatcher.StateGivenUp; given != (c.more > 0) || given && tries != c.more {
				t.Errorf("%+v: %d tries of an outage, given up: %t", c, tries, given)
			}
			if c.more == 0 { // the server reconnects when the broker is back
				chaos.FailOpen(nil)
				<-time.After(time.Minute)
				if h := server.Health(t.Context()); h.State != dispatcher.StateConnected {
					t.Errorf("%+v: state is %s after the broker came back", c, h.State)
				}
			}
		})
	}
}

func TestFirstConnectEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		chaos := brokertest.NewChaos(memory.New(), nil)
		chaos.FailOpen(errors.New("down"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, _, err := dispatcher.NewServerContext(ctx, &dispatcher.ServerConfig{
			Broker: chaos, Exchange: "e", DefaultRoutingKey: "k", ReconnectionRetriesForever: true, Logger: &recorder{},
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestAPermanentErrorIsNotRetried(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*brokertest.Chaos, error){
		"open":    (*brokertest.Chaos).FailOpen,
		"declare": (*brokertest.Chaos).RefuseDeclare,
	} {
		chaos := brokertest.NewChaos(memory.New(), nil)
		refused := errors.Join(broker.ErrPermanent, broker.ErrRejected)
		fail(chaos, refused)
		_, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
			Broker: chaos, Exchange: "e", DefaultRoutingKey: "k", ReconnectionRetriesForever: true, Logger: &recorder{},
		})
		if !errors.Is(err, broker.ErrRejected) || chaos.Opens() != 1 {
			t.Errorf("%s: %v after %d tries, want the error after one", name, err, chaos.Opens())
		}
	}
}

// D3's second half: the channel closes once the retries of an outage are used up.
func TestD3GivenUpConnectionClosesTheChannelAfterTheTasks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *dispatcher.ServerConfig) {
			c.ReconnectionRetriesForever, c.ReconnectionRetries = false, 2
		})
		running, finish := make(chan struct{}), make(chan struct{})
		r.worker("w", tasks{"long": fn(func() { close(running); <-finish })})
		r.publish("long")
		wait(t, running, "start of the task")

		r.chaos.FailOpen(errors.New("gone"))
		r.chaos.Kill()
		<-time.After(10 * time.Second)
		if h := r.server.Health(t.Context()); h.State != dispatcher.StateGivenUp || h.LastError == nil || h.OK() {
			t.Errorf("health %+v, want the connection given up, with the error", h)
		}
		select {
		case <-r.givenUp:
			t.Error("the channel closed while a task was running")
		default:
		}
		close(finish)
		wait(t, r.givenUp, "closed channel")
		if err := r.server.Publish(dispatcher.NewTask("long")); !errors.Is(err, dispatcher.ErrNotSent) {
			t.Errorf("publish: %v, want ErrNotSent", err)
		}
	})
}

func TestGivenUpConnectionWaitsForTasksOnlyUntilTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *dispatcher.ServerConfig) {
			c.ReconnectionRetriesForever, c.ReconnectionRetries, c.ShutdownTimeout = false, -1, time.Minute
		})
		running, finish := make(chan struct{}), make(chan struct{})
		r.worker("w", tasks{"stuck": fn(func() { close(running); <-finish })})
		r.publish("stuck")
		wait(t, running, "start of the task")
		began := time.Now()
		r.chaos.FailOpen(errors.New("gone"))
		r.chaos.Kill()
		<-r.givenUp
		if took := time.Since(began); took < time.Minute || took > 80*time.Second {
			t.Errorf("the channel was closed after %v, want about a minute", took)
		}
		close(finish)
	})
}

func TestStartAfterGivingUpSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *dispatcher.ServerConfig) { c.ReconnectionRetriesForever, c.ReconnectionRetries = false, -1 })
		w := r.worker("w", tasks{"n": fn(func() {})})
		w.Close()
		r.chaos.FailOpen(errors.New("gone"))
		r.chaos.Kill()
		<-r.givenUp
		if err := w.Start(r.server); !errors.Is(err, dispatcher.ErrServerClosed) {
			t.Errorf("got %v, want ErrServerClosed, or callers would retry for ever", err)
		}
	})
}

func TestTopologyAndWorkersComeBackAfterALostConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		got := make(chan int, 10)
		r.worker("w", tasks{"n": fn(func(n int) { got <- n })})
		for i := range 3 {
			r.publish("n", i)
			wait(t, got, "task")
			if err := r.session().Delete(t.Context(), "jobs"); err != nil { // an operator's mistake, which declaring again repairs
				t.Fatal(err)
			}
			r.chaos.Kill()
			synctest.Wait()
			eventuallyOK(t, r)
		}
		if n := r.server.Stats().Reconnects; n != 3 {
			t.Errorf("%d reconnects, want 3", n)
		}
	})
}

func TestADeletedQueueIsHealedWithoutANewConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		got := make(chan int, 1)
		r.worker("w", tasks{"n": fn(func(n int) { got <- n })})
		if err := r.session().Delete(t.Context(), "jobs"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		eventuallyOK(t, r)
		r.publish("n", 7)
		if n := wait(t, got, "task"); n != 7 {
			t.Errorf("got %d", n)
		}
		if n := r.server.Stats().Reconnects; n != 0 {
			t.Errorf("%d reconnects, want none", n)
		}
	})
}

func TestABrokerThatDropsAtOnceIsNotDialledInAHotLoop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds, c.PublishTimeout = 0, time.Minute })
		began := time.Now()
		for time.Since(began) < 10*time.Minute {
			eventuallyConnected(t, r)
			r.chaos.Kill()
			synctest.Wait()
		}
		// If a broker accepts the connection, the next try is at least 1.2 s later. Only the first few tries
		// come sooner.
		if n := r.chaos.Opens(); n > 520 {
			t.Errorf("dialled %d times in ten minutes, want at most 520", n)
		}
	})
}

// An adapter with its own goroutines ends its consumers first and closes Done last. The worker once took that for a
// lost consumer on a live session. It then paused longer and longer although it was connected.
func TestAFlappingConnectionIsPacedByTheSupervisorAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withHooks(&hooked{lateDone: 10 * time.Millisecond}))
		r.worker("w", tasks{"n": fn(func() {})})
		began := time.Now()
		for range 20 {
			r.chaos.Kill()
			synctest.Wait()
			eventuallyOK(t, r)
		}
		if took := time.Since(began); took > 30*time.Second { // a pause of 1 s ± 20 % each
			t.Errorf("20 lost connections took %v", took)
		}
		r.server.Close()
		<-time.After(time.Second) // lets the last Done close before the fake clock ends with the test
	})
}

func TestAConnectionThatWasJustLostIsCalledDisconnected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		for range 20 {
			r.chaos.FailOpen(errors.New("down"))
			r.chaos.Kill() // the supervisor notices soon, before or after the calls below
			if err := r.server.Publish(dispatcher.NewTask("n")); !errors.Is(err, dispatcher.ErrDisconnected) || !errors.Is(err, dispatcher.ErrNotSent) {
				t.Fatalf("Publish: %v", err)
			}
			if _, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "q"}, nil); !errors.Is(err, dispatcher.ErrDisconnected) {
				t.Fatalf("NewWorker: %v", err)
			}
			r.chaos.FailOpen(nil)
			<-time.After(time.Minute)
		}
	})
}

func TestStartWhileDisconnectedHasGofortDispatchersText(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.worker("w", tasks{"n": fn(func() {})})
	w.Close()
	r.chaos.FailOpen(errors.New("down"))
	r.chaos.Kill()
	eventually(t, "the server is disconnected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnecting })
	err := w.Start(r.server)
	if !errors.Is(err, dispatcher.ErrWorkerDisconnected) || err.Error() != "Can't start worker, because you are not connected to AMQP" {
		t.Errorf("got %v", err)
	}
	r.chaos.FailOpen(nil)
	eventually(t, "the server is connected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnected })
	if err := w.Start(r.server); err != nil {
		t.Error(err)
	}
}

func TestALostConnectionDoesNotStopARunningTaskNorSettleItsSuccessor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate, entered := make(chan struct{}), make(chan bool, 10)
		r.worker("w", tasks{"n": fn(func(ctx context.Context) {
			info, _ := dispatcher.TaskFromContext(ctx)
			entered <- info.Redelivered
			<-gate
		})}, limit(2))
		r.publish("n")
		if <-entered {
			t.Error("the first delivery is marked as redelivered")
		}
		r.chaos.Kill()
		<-time.After(time.Minute)
		synctest.Wait()
		if n := r.server.Stats().Received; n != 2 || len(entered) != 0 {
			t.Errorf("received %d times, called again %d times; want it received twice and held", n, len(entered))
		}
		close(gate)
		synctest.Wait()
		if s := r.server.Stats(); s.Lost != 1 || s.Succeeded != 1 {
			t.Errorf("stats %+v, want one lost and one success", s)
		}
		if !strings.Contains(r.log.String(), "the broker delivers the task again") {
			t.Error("the log does not mention the lost delivery")
		}
	})
}
