package dispatchertest_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/dispatchertest"
)

// patience is a generous limit. It does not measure speed.
const patience = time.Minute

var errBroken = errors.New("broken")

func TestRunUntilIdleReturnsWhatHappened(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		kit := dispatchertest.New()
		server := kit.NewServer(t, nil)
		start(t, server, tasks{
			"good":  {Function: func() error { return nil }},
			"shaky": {Function: shaky, Retry: &dispatcher.RetryPolicy{InitialInterval: time.Hour, Jitter: -1}},
			"bad":   {Function: func() error { return dispatcher.Permanent(errBroken) }},
			"old":   {Function: func() error { return dispatcher.Discard(errBroken) }},
			"panic": {Function: func() { panic("oh") }},
		})
		began := time.Now()
		for _, name := range []string{"good", "shaky", "bad", "old", "panic", "unknown"} {
			publish(t, server, &dispatcher.Task{Name: name, UUID: name + "-1"})
		}
		r := idle(t, kit)
		if names(r.Succeeded) != "good/1 shaky/3" {
			t.Errorf("succeeded: %s", names(r.Succeeded))
		}
		verdicts := map[string]dispatcher.Verdict{}
		for _, e := range r.Failed {
			verdicts[names([]dispatcher.FinishEvent{e})] = e.Verdict
			if !errors.Is(e.Err, errBroken) && e.Task.Name != "panic" {
				t.Errorf("%s: %v", e.Task.Name, e.Err)
			}
		}
		for attempt, want := range map[string]dispatcher.Verdict{
			"shaky/1": dispatcher.VerdictRetry, "shaky/2": dispatcher.VerdictRetry, "bad/1": dispatcher.VerdictDeadLetter,
			"old/1": dispatcher.VerdictDiscard, "panic/1": dispatcher.VerdictDeadLetter,
		} {
			if verdicts[attempt] != want {
				t.Errorf("%s ended with %q, want %q", attempt, verdicts[attempt], want)
			}
		}
		reasons := map[string]string{}
		for _, l := range r.DeadLetters {
			reasons[l.Name] = l.Reason
		}
		if len(reasons) != 3 || reasons["bad"] != dispatcher.ReasonPermanent || reasons["panic"] != dispatcher.ReasonFailed ||
			reasons["unknown"] != dispatcher.ReasonUnknownTask {
			t.Errorf("dead letters %v", reasons)
		}
		if r.Waiting != nil {
			t.Errorf("waiting %v", r.Waiting)
		}
		// shaky pauses twice for an hour, and the unknown task is given up sooner. It takes not a moment longer,
		// because nothing is polled.
		if took := time.Since(began); took != 2*time.Hour {
			t.Errorf("it took %v", took)
		}

		publish(t, server, dispatcher.NewTask("good"))
		if r := idle(t, kit); names(r.Succeeded) != "good/1" || len(r.Failed) != 0 || len(r.DeadLetters) != 3 {
			t.Errorf("the second time: %v", r)
		}
	})
}

// shaky fails twice.
func shaky(ctx context.Context) error {
	if info, _ := dispatcher.TaskFromContext(ctx); info.Attempt < 3 {
		return errBroken
	}
	return nil
}

func TestRunUntilIdleWaitsForFollowUpTasksAndDelays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		kit := dispatchertest.New()
		server := kit.NewServer(t, nil)
		start(t, server, tasks{"n": {Function: func(left int) error {
			<-time.After(time.Minute)
			if left == 0 {
				return nil
			}
			next := dispatcher.NewTask("n", left-1)
			next.Delay = time.Hour
			return server.Publish(next)
		}}})
		first := dispatcher.NewTask("n", 4)
		first.Delay = time.Hour
		began := time.Now()
		publish(t, server, first)
		if r := idle(t, kit); len(r.Succeeded) != 5 {
			t.Error(r)
		}
		if took := time.Since(began); took != 5*(time.Hour+time.Minute) {
			t.Errorf("it took %v", took)
		}
	})
}

// Five attempts over eight hours take almost no real time.
func TestHoursTakeNoTime(t *testing.T) {
	t.Parallel()
	began := time.Now()
	synctest.Test(t, func(t *testing.T) {
		kit := dispatchertest.New()
		server := kit.NewServer(t, nil)
		start(t, server, tasks{"n": {
			Function: func() error { return errBroken },
			Retry:    &dispatcher.RetryPolicy{MaxAttempts: 5, InitialInterval: time.Hour, Multiplier: 1, Jitter: -1},
		}})
		task := dispatcher.NewTask("n")
		task.Delay = 4 * time.Hour
		began := time.Now()
		publish(t, server, task)
		if r := idle(t, kit); len(r.Failed) != 5 || len(r.DeadLetters) != 1 || r.DeadLetters[0].Attempts != 5 {
			t.Error(r)
		}
		if took := time.Since(began); took != 8*time.Hour {
			t.Errorf("it took %v by the clock of the test", took)
		}
	})
	if took := time.Since(began); took > patience {
		t.Errorf("it took %v", took)
	}
}

// The embedded broker knows when it is empty, even under load and in real time.
func TestRunUntilIdleUnderLoad(t *testing.T) {
	t.Parallel()
	kit := dispatchertest.New()
	server := kit.NewServer(t, nil)
	var ran atomic.Int64
	start(t, server, tasks{"n": {Function: func(depth int) error {
		ran.Add(1)
		if depth == 0 {
			return nil
		}
		return errors.Join(server.Publish(dispatcher.NewTask("n", depth-1)), server.Publish(dispatcher.NewTask("n", depth-1)))
	}}}, func(c *dispatcher.WorkerConfig) { c.Limit = 8 })
	for range 20 {
		ran.Store(0)
		publish(t, server, dispatcher.NewTask("n", 6))
		if r := idle(t, kit); len(r.Succeeded) != 127 || ran.Load() != 127 {
			t.Fatalf("%d attempts in the result, %d ran", len(r.Succeeded), ran.Load())
		}
	}
}

func TestRunUntilIdleReturnsWithoutWorkers(t *testing.T) {
	t.Parallel()
	kit := dispatchertest.New()
	if r := idle(t, kit); r.Waiting != nil || r.String() != "attempts: 0 succeeded, 0 failed; dead letters: 0" {
		t.Error(r)
	}
	server := kit.NewServer(t, nil)
	publish(t, server, dispatcher.NewTask("n"), dispatcher.NewTask("n"))
	r := idle(t, kit)
	if len(r.Waiting) != 1 || r.Waiting["test"] != 2 {
		t.Errorf("waiting %v", r.Waiting)
	}
	if want := `waiting in queue "test", which no started worker consumes: 2`; !strings.Contains(r.String(), want) {
		t.Errorf("%v\nwant %s", r, want)
	}
	w := start(t, server, tasks{"n": {Function: func() {}}})
	if r := idle(t, kit); len(r.Succeeded) != 2 || r.Waiting != nil {
		t.Error(r)
	}
	w.Close()
	publish(t, server, dispatcher.NewTask("n"))
	if r := idle(t, kit); r.Waiting["test"] != 1 {
		t.Error(r)
	}
}

// A delayed task for another program ends in a queue from which nobody takes it.
func TestRunUntilIdleWaitsForWhatIsDelayedForNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		kit := dispatchertest.New()
		server := kit.NewServer(t, nil)
		task := dispatcher.NewTask("n")
		task.Delay = time.Hour
		lost := dispatcher.NewTask("lost")
		lost.Delay, lost.RoutingKey = time.Minute, "nowhere"
		publish(t, server, task, lost)
		began := time.Now()
		r := idle(t, kit)
		if r.Waiting["test"] != 1 || time.Since(began) != time.Hour {
			t.Errorf("after %v: %v", time.Since(began), r)
		}
		if len(r.DeadLetters) != 1 || r.DeadLetters[0].Reason != dispatcher.ReasonUndeliverable || r.DeadLetters[0].Name != "lost" {
			t.Errorf("dead letters: %v", r)
		}
	})
}

func TestRunUntilIdleEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		kit := dispatchertest.New()
		server := kit.NewServer(t, nil)
		start(t, server, tasks{
			"good": {Function: func() {}},
			"bad":  {Function: func() error { return dispatcher.Permanent(errBroken) }},
			"slow": {Function: func() { <-time.After(time.Hour) }},
		}, func(c *dispatcher.WorkerConfig) { c.Limit = 1 })
		later := dispatcher.NewTask("good")
		later.Delay = 3 * time.Hour
		publish(t, server, dispatcher.NewTask("good"), dispatcher.NewTask("bad"), dispatcher.NewTask("slow"), dispatcher.NewTask("good"), later)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r, err := kit.RunUntilIdle(ctx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%v", err)
		}
		if want := `run until idle: not done: queue "test": 0 waiting, 2 with a worker; delayed: 1: context deadline exceeded`; err.Error() != want {
			t.Errorf("%v\nwant %s", err, want)
		}
		if names(r.Succeeded) != "good/1" || names(r.Failed) != "bad/1" || len(r.DeadLetters) != 1 {
			t.Errorf("so far: %v", r)
		}
		if r := idle(t, kit); len(r.Succeeded) != 3 {
			t.Errorf("afterwards: %v", r)
		}
	})
}

// A worker is closed while RunUntilIdle waits for its queue.
func TestRunUntilIdleSeesAWorkerStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		kit := dispatchertest.New()
		server := kit.NewServer(t, nil)
		w := start(t, server, tasks{"slow": {Function: func() { <-time.After(10 * time.Second) }}}, func(c *dispatcher.WorkerConfig) { c.Limit = 1 })
		publish(t, server, dispatcher.NewTask("slow"), dispatcher.NewTask("slow"), dispatcher.NewTask("slow"))
		time.AfterFunc(time.Second, w.Close)
		began := time.Now()
		if r := idle(t, kit); len(r.Succeeded) != 1 || r.Waiting["test"] != 2 || time.Since(began) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(began), r)
		}
	})
}

// RunUntilIdle still waits for the queue of a disconnected worker.
func TestRunUntilIdleWaitsForAWorkerToComeBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		kit := dispatchertest.New()
		cfg := kit.Config(&dispatcher.ServerConfig{
			Exchange: "test", DefaultRoutingKey: "test", ReconnectionIntervalSeconds: 60, Logger: discard{},
		})
		chaos := brokertest.NewChaos(cfg.Broker, nil)
		cfg.Broker = chaos
		server, _, err := dispatcher.NewServer(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		begun, broken := make(chan bool, 10), make(chan bool)
		start(t, server, tasks{"n": {Function: func() { begun <- true; <-broken }}})
		publish(t, server, dispatcher.NewTask("n"))
		<-begun
		chaos.FailOpen(errors.New("down"))
		chaos.Kill()
		close(broken)
		synctest.Wait()
		time.AfterFunc(time.Hour, func() { chaos.FailOpen(nil) })
		began := time.Now()
		if r := idle(t, kit); len(r.Succeeded) != 2 || time.Since(began) < time.Hour || r.Waiting != nil {
			t.Errorf("after %v: %v", time.Since(began), r)
		}
	})
}

// A task that was lost twice runs alone, from a queue that has no consumer.
func TestRunUntilIdleWaitsForSuspects(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		kit := dispatchertest.New()
		server := kit.NewServer(t, nil)
		publish(t, server, dispatcher.NewTask("n"))
		session, err := kit.Config(nil).Broker.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			c, err := session.Consume(t.Context(), broker.ConsumeOptions{Queue: "test", Prefetch: 1})
			if err != nil {
				t.Fatal(err)
			}
			<-c.Deliveries()
			if err := c.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := session.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		start(t, server, tasks{"n": {Function: func() { <-time.After(time.Hour) }}})
		if r := idle(t, kit); len(r.Succeeded) != 1 || r.Waiting != nil || server.Stats().Suspected != 1 {
			t.Errorf("%v\n%+v", r, server.Stats())
		}
	})
}

// The kit reads dead letters page by page.
func TestResultHasAllDeadLetters(t *testing.T) {
	t.Parallel()
	kit := dispatchertest.New()
	server := kit.NewServer(t, &dispatcher.ServerConfig{Exchange: "test", DefaultRoutingKey: "test", Logger: discard{}})
	start(t, server, tasks{"n": {Function: func(int, string) {}}})
	const many = 1001
	for i := range many {
		publish(t, server, dispatcher.NewTask("n", i))
	}
	seen := map[string]bool{}
	for _, l := range idle(t, kit).DeadLetters {
		seen[l.UUID] = l.Reason == dispatcher.ReasonBadArguments
	}
	if len(seen) != many {
		t.Errorf("%d dead letters, want %d", len(seen), many)
	}
}

func TestResultPrintsItself(t *testing.T) {
	t.Parallel()
	kit := dispatchertest.New()
	server := kit.NewServer(t, nil)
	one := func(c *dispatcher.WorkerConfig) { c.Limit = 1 } // so that the first task fails first
	start(t, server, tasks{"bad": {Function: func(string) error { return dispatcher.Permanent(errBroken) }}}, one)
	publish(t, server, &dispatcher.Task{UUID: "u-1", Name: "bad", Args: dispatcher.Args("secret")}, &dispatcher.Task{UUID: "u-2", Name: "bad"})
	got := idle(t, kit).String()
	want := `attempts: 0 succeeded, 1 failed; dead letters: 2
	failed: task "bad" (u-1), attempt 1, then dead_letter: broken
	dead letter: task "bad" (u-1) of queue "test", permanent: broken
	dead letter: task "bad" (u-2) of queue "test", bad_arguments: want 1 argument, got 0`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
