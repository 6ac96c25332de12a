package dispatcher_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// These are the acceptance tests of the library. Each tests one promise, through the public API only. Every test runs
// on the embedded broker, and on RabbitMQ when DISPATCHER_AMQP_CON is set. Package internal/systemtest tests each
// promise in depth.

// The sender and the worker are two servers, as they are two programs in production.
func TestDispatcher_ATaskRunsInAnotherProgramWithItsTypedArguments(t *testing.T) {
	t.Parallel()
	type order struct {
		Item  string
		Price float64
	}
	type call struct {
		to      string
		copies  int64
		at      time.Time
		ids     []uint8
		weights map[string]int
		order   order
	}
	everywhere(t, func(v *venue) {
		calls := make(chan call, 1)
		worker := v.server()
		v.worker(worker, "mailer", tasks{"send": fn(func(_ context.Context, to string, copies int64, at time.Time, ids []uint8, weights map[string]int, o order) error {
			calls <- call{to, copies, at, ids, weights, o}
			return nil
		})})

		sender := v.server()
		at := time.Date(2026, 11, 30, 12, 0, 0, 123456789, time.UTC)
		err := sender.Publish(dispatcher.NewTask("send",
			"ann@example.org", int64(1<<62+1), at, []uint8{0, 255}, map[string]int{"a": -1}, order{"book", 12.5}))
		if err != nil {
			v.t.Fatal(err)
		}

		got := wait(v.t, calls, "call")
		if got.to != "ann@example.org" || got.copies != 1<<62+1 || !got.at.Equal(at) || !slices.Equal(got.ids, []uint8{0, 255}) ||
			got.weights["a"] != -1 || got.order != (order{"book", 12.5}) {
			v.t.Errorf("the function got %+v", got)
		}
		eventually(v.t, "the task is done", func() bool { return worker.Stats().Succeeded == 1 })
		v.empty(v.name)
	})
}

// Publish returns nil only for a task that is in a queue.
func TestDispatcher_PublishSaysWhatBecameOfTheTask(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server(func(c *dispatcher.ServerConfig) {
			c.InitQueues = []dispatcher.Queue{{Name: v.name, BindingKeys: []string{v.name}}}
		})
		if err := s.Publish(dispatcher.NewTask("n")); err != nil {
			v.t.Errorf("a task with a queue: %v", err)
		}
		nowhere := dispatcher.NewTask("n")
		nowhere.RoutingKey = v.name + ".nowhere"
		if err := s.Publish(nowhere); !errors.Is(err, dispatcher.ErrUnroutable) {
			v.t.Errorf("a task that no queue takes: %v", err)
		}
		if err := s.Publish(dispatcher.NewTask("n", make(chan int))); !errors.Is(err, dispatcher.ErrRejected) {
			v.t.Errorf("an argument that cannot travel: %v", err)
		}
		s.Close()
		if err := s.Publish(dispatcher.NewTask("n")); !errors.Is(err, dispatcher.ErrNotSent) {
			v.t.Errorf("a closed server: %v", err)
		}
		if got := v.take(v.name, 1); got[0].Type != "n" {
			v.t.Errorf("the queue has %q", got[0].Type)
		}
		v.empty(v.name)
	})
}

func TestDispatcher_ATimeoutEndsTheContextOfATask(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		cause := make(chan error, 1)
		v.worker(v.server(), "w", tasks{"slow": {Timeout: 50 * time.Millisecond, Function: func(ctx context.Context) error {
			<-ctx.Done()
			cause <- context.Cause(ctx)
			return ctx.Err()
		}}})
		v.publish(v.server(), "slow")
		if err := wait(v.t, cause, "end of the context"); !errors.Is(err, dispatcher.ErrTimeout) {
			v.t.Errorf("the cause is %v", err)
		}
		v.dead(dispatcher.ReasonTimeout)
	})
}

func TestDispatcher_AtMostLimitTasksRunAtOnce(t *testing.T) {
	t.Parallel()
	const limit, count = 3, 30
	everywhere(t, func(v *venue) {
		var mu sync.Mutex
		now, most := 0, 0
		full, done := make(chan struct{}), make(chan struct{}, count)
		closeFull := sync.OnceFunc(func() { close(full) })
		s := v.server()
		v.worker(s, "w", tasks{"n": fn(func(int) {
			mu.Lock()
			now++
			most = max(most, now)
			if now == limit {
				closeFull()
			}
			mu.Unlock()
			<-full // waits until as many run at once as may
			mu.Lock()
			now--
			mu.Unlock()
			done <- struct{}{}
		})}, func(c *dispatcher.WorkerConfig) { c.Limit = limit })
		for n := range count {
			v.publish(s, "n", n)
		}
		for range count {
			wait(v.t, done, "task")
		}
		if most != limit {
			v.t.Errorf("%d ran at once, want %d", most, limit)
		}
	})
}

// Every confirmed task runs, however often the links are lost. Some tasks may run twice.
func TestDispatcher_NothingIsLostWhenLinksAreCut(t *testing.T) {
	t.Parallel()
	const count = 200
	everywhere(t, func(v *venue) {
		var mu sync.Mutex
		ran := make(map[int]bool)
		worker, sender := v.server(), v.server()
		v.worker(worker, "w", tasks{"n": fn(func(n int) { mu.Lock(); defer mu.Unlock(); ran[n] = true })})
		for n := range count {
			if n%50 == 25 {
				v.kill()
			}
			task := dispatcher.NewTask("n", n)
			eventually(v.t, "the task is confirmed", func() bool { return sender.PublishContext(v.t.Context(), task) == nil })
		}
		eventually(v.t, "all have run", func() bool { mu.Lock(); defer mu.Unlock(); return len(ran) == count })
		if st := worker.Stats(); st.Reconnects == 0 || st.DeadLettered != 0 {
			v.t.Errorf("stats %+v", st)
		}
	})
}

// Close waits for running tasks. Tasks that have not started go to another worker.
func TestDispatcher_CloseDrains(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		began, gate, ended := make(chan struct{}, 9), make(chan struct{}), make(chan struct{}, 9)
		first := v.server()
		v.worker(first, "first", tasks{"n": fn(func(int) { began <- struct{}{}; <-gate; ended <- struct{}{} })}, limit(1))
		for n := range 3 {
			v.publish(first, "n", n)
		}
		wait(v.t, began, "first task")
		closed := make(chan struct{})
		go func() { defer close(closed); first.Close() }()
		eventually(v.t, "the worker takes nothing more", func() bool { return !first.Health(v.t.Context()).Workers[0].Consuming })
		select {
		case <-closed:
			v.t.Error("Close did not wait for the running task")
		default:
		}
		close(gate)
		wait(v.t, closed, "end of Close")
		if len(ended) != 1 || len(began) != 0 {
			v.t.Errorf("%d tasks ended and %d more began", len(ended), len(began))
		}

		rest := make(chan int, 9)
		v.worker(v.server(), "second", tasks{"n": fn(func(n int) { rest <- n })})
		got := []int{wait(v.t, rest, "task"), wait(v.t, rest, "task")}
		if slices.Sort(got); !slices.Equal(got, []int{1, 2}) {
			v.t.Errorf("the second worker got %v", got)
		}
	})
}

// A failed task is tried again as its policy says. Then it is kept with its reason, and can be run again.
func TestDispatcher_RetriesAndDeadLetters(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		attempts, repaired := make(chan int, 9), make(chan struct{})
		s := v.server()
		v.worker(s, "w", tasks{"send": {
			Retry: &dispatcher.RetryPolicy{MaxAttempts: 3, InitialInterval: 20 * time.Millisecond},
			Function: func(ctx context.Context, to string) error {
				info, _ := dispatcher.TaskFromContext(ctx)
				attempts <- info.Attempt
				select {
				case <-repaired:
					return nil
				default:
					return errors.New("550 no such user")
				}
			},
		}})
		task := v.publish(s, "send", "ann@example.org")
		for want := 1; want <= 3; want++ {
			if got := wait(v.t, attempts, "attempt"); got != want {
				v.t.Errorf("attempt %d, want %d", got, want)
			}
		}

		eventually(v.t, "the dead letter", func() bool { return s.Stats().DeadLettered == 1 })
		letters, err := s.DeadLetters(v.name).List(v.t.Context(), dispatcher.DeadLetterFilter{}, dispatcher.Page{})
		if err != nil || len(letters) != 1 {
			v.t.Fatal(letters, err)
		}
		if l := letters[0]; l.UUID != task.UUID || l.Name != "send" || l.Reason != dispatcher.ReasonFailed || l.Error != "550 no such user" || len(l.Log) != 3 {
			v.t.Errorf("the dead letter is %+v", l)
		}

		close(repaired)
		if n, err := s.DeadLetters(v.name).Replay(v.t.Context(), dispatcher.DeadLetterFilter{UUID: task.UUID}); n != 1 || err != nil {
			v.t.Fatal(n, err)
		}
		wait(v.t, attempts, "attempt after the replay")
		eventually(v.t, "the task is done", func() bool { return s.Stats().Succeeded == 1 })
	})
}
