package systemtest_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// D11: gofort/dispatcher closed its publisher first, and kept taking tasks meanwhile.
func TestD11ADrainingTaskCanPublishAndNothingNewIsTaken(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	entered, proceed := make(chan struct{}), make(chan struct{})
	var others atomic.Int32
	r.worker("w", tasks{
		"first": fn(func() error {
			close(entered)
			<-proceed
			return r.server.Publish(dispatcher.NewTask("follow-up"))
		}),
		"follow-up": fn(func() { others.Add(1) }),
	}, limit(1))
	r.publish("first")
	wait(t, entered, "start of the task")
	r.publish("follow-up")

	done := make(chan error, 1)
	go func() { done <- r.server.Shutdown(context.Background()) }()
	eventually(t, "the worker has stopped consuming", func() bool { return r.inspect("jobs").Consumers == 0 })
	close(proceed)
	if err := wait(t, done, "end of Shutdown"); err != nil {
		t.Error(err)
	}
	if q := r.inspect("jobs"); q.Ready != 2 || q.Unsettled != 0 || q.Consumers != 0 || others.Load() != 0 {
		t.Errorf("queue %+v, %d follow-ups ran; want only the 2 follow-ups in the queue", q, others.Load())
	}
	if s := r.server.Stats(); s.Succeeded != 1 || s.Published != 3 {
		t.Errorf("stats %+v", s)
	}
}

// go-rabbitmq releases tasks during shutdown while it still consumes, and receives the same messages again and again.
func TestClosingGivesBackEachTaskOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.worker("w", tasks{"n": fn(func() {})}, prefetch(4, 4))
	const rounds = 100
	for range rounds {
		batch := make([]*dispatcher.Task, 20)
		for i := range batch {
			batch[i] = dispatcher.NewTask("n")
		}
		if errs := r.server.PublishBatch(t.Context(), batch); errs != nil {
			t.Fatal(errs)
		}
		w.Close()
		if err := w.Start(r.server); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all tasks run", func() bool { return r.server.Stats().Succeeded == rounds*20 })
	if s := r.server.Stats(); s.Released > rounds*4 {
		t.Errorf("%d releases in %d closings of 4 slots: some tasks were released more than once", s.Released, rounds)
	}
}

func TestShutdownCancelsAtItsDeadlineAndGivesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.worker("w", tasks{
			"obeys": fn(func(ctx context.Context) error {
				<-ctx.Done()
				if !errors.Is(context.Cause(ctx), dispatcher.ErrShutdown) {
					t.Errorf("cause %v", context.Cause(ctx))
				}
				return ctx.Err()
			}),
			"finishes": fn(func(ctx context.Context) error { <-ctx.Done(); return nil }),
		})
		r.publish("obeys")
		r.publish("finishes")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		if err := r.server.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("took %v", took)
		}
		if q := r.inspect("jobs"); q.Ready != 1 || q.Unsettled != 0 {
			t.Errorf("queue %+v, want the task that did not finish", q)
		}
		ds, err := r.session().TryGet(t.Context(), "jobs", 1)
		if err != nil || len(ds) != 1 || ds[0].Type != "obeys" || ds[0].Losses != 0 {
			t.Errorf("%v, %v: want the task obeys without a loss", ds, err)
		}
		if s := r.server.Stats(); s.Released != 1 || s.Succeeded != 1 || s.DeadLettered != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestShutdownLeavesBehindWhatDoesNotEndAndSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate := make(chan struct{})
		w := r.worker("w", tasks{"deaf": fn(func() { <-gate })})
		r.publish("deaf")
		r.publish("deaf")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		err := w.Shutdown(ctx)
		if !errors.Is(err, dispatcher.ErrTasksRunning) || !strings.Contains(err.Error(), "tasks are still running: 2") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took < 11*time.Second || took > 17*time.Second {
			t.Errorf("took %v", took)
		}
		if q := r.inspect("jobs"); q.Ready != 2 || q.Unsettled != 0 {
			t.Errorf("queue %+v: the broker must have the unsettled tasks again", q)
		}
		if err := w.Start(r.server); !errors.Is(err, dispatcher.ErrWorkerStarted) {
			t.Errorf("Start while calls of the former shift run: %v; Limit would not hold", err)
		}
		close(gate)
		synctest.Wait()
		if s := r.server.Stats(); s.Lost != 2 || s.Succeeded != 0 {
			t.Errorf("stats %+v: a late ack must not count", s)
		}
		if err := w.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown after all calls ended: %v", err)
		}
		if err := w.Start(r.server); err != nil {
			t.Errorf("Start after all calls ended: %v", err)
		}
		synctest.Wait()
		if s := r.server.Stats(); s.Succeeded != 2 {
			t.Errorf("stats %+v, want both tasks run again", s)
		}
	})
}

func TestAnAbandonedCallIsWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var ended atomic.Bool
		w := r.worker("w", tasks{"slow": {TimeoutSeconds: 1, Function: func() { <-time.After(20 * time.Second); ended.Store(true) }}})
		r.publish("slow")
		<-time.After(5 * time.Second)
		w.Close()
		if !ended.Load() {
			t.Error("Close returned while the abandoned call was running")
		}
		if s := r.server.Stats(); s.Abandoned != 1 || s.DeadLettered != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestPublishesUnderWayAreConfirmedBeforeTheConnectionCloses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		r.chaos.HoldConfirms(true)
		result := make(chan error, 1)
		go func() { result <- r.server.Publish(dispatcher.NewTask("n")) }()
		synctest.Wait()
		time.AfterFunc(5*time.Second, func() { r.chaos.HoldConfirms(false) })
		r.server.Close()
		if err := <-result; err != nil {
			t.Errorf("got %v, want the publish confirmed", err)
		}
	})
}

// D15: gofort/dispatcher left goroutines behind, and also a connection when NewServer failed. TestMain checks for
// goroutines at the end of all tests. This test checks for consumers and sessions.
func TestD15NothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // synctest fails if a goroutine is left
		r := newRig(t)
		r.chaos.RefuseDeclare(errors.New("refused for now"))
		_, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
			Broker: r.chaos, Exchange: "other", DefaultRoutingKey: "k", ReconnectionRetries: 1, ReconnectionIntervalSeconds: 1, Logger: r.log,
		})
		if err == nil {
			t.Fatal("NewServer returned no error")
		}
		if n := r.chaos.Live(); n != 1 {
			t.Errorf("%d live sessions, want only the first server's", n)
		}
		r.chaos.RefuseDeclare(nil)
		r.worker("w", tasks{"n": fn(func() {})})
		r.server.Close()
		if n := r.chaos.Live(); n != 0 {
			t.Errorf("%d live sessions after Close", n)
		}
	})
}

func TestAbandonedCallsAreCountedApartAtShutdown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate := make(chan struct{})
		w := r.worker("w", tasks{"deaf": {Timeout: time.Second, Function: func() { <-gate }}})
		r.publish("deaf")
		<-time.After(5 * time.Second)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		err := w.Shutdown(ended)
		if !errors.Is(err, dispatcher.ErrTasksRunning) || err.Error() != `worker "w": tasks are still running: 0, and 1 abandoned` {
			t.Errorf("got %v", err)
		}
		close(gate)
	})
}

func TestATaskThatTheDrainDeadlineEndedIsGivenBackEvenIfItsTimeoutPassesMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.worker("w", tasks{"slow": {Timeout: 10 * time.Second, Function: func(ctx context.Context) error {
			<-ctx.Done()
			<-time.After(800 * time.Millisecond)
			return context.Cause(ctx)
		}}})
		r.publish("slow")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 9500*time.Millisecond)
		defer cancel()
		if err := r.server.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if s := r.server.Stats(); s.Released != 1 || s.DeadLettered != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestCloseLeavesTheChannelOpen(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.server.Close()
	select {
	case <-r.givenUp:
		t.Error("Close closed the channel, so programs would exit with an error")
	default:
	}
}
