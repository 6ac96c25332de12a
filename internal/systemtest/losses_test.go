package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// These tests are about tasks whose worker or link is lost, and about tasks that are delivered again while they run.

// If the link is lost while a task runs, the broker delivers the task again at once, to the process that still runs it.
func TestATaskThatRunsIsNotRunAgainWhenItsLinkIsLost(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server(func(c *dispatcher.ServerConfig) { c.Retry = fast(2) })
		entered, gate := make(chan int, 10), make(chan error)
		v.worker(s, "w", tasks{"n": fn(func(ctx context.Context) error {
			info, _ := dispatcher.TaskFromContext(ctx)
			entered <- info.Attempt
			return <-gate
		})}, limit(2))
		v.publish(s, "n")
		wait(v.t, entered, "call")
		v.kill()
		// Not Stats.Received: it counts a delivery a moment before the delivery finds the running call.
		eventually(v.t, "the task is delivered again and held", func() bool { return s.Health(v.t.Context()).Workers[0].Held == 1 })
		gate <- errors.New("no") // the held delivery takes the verdict, a retry
		if n := wait(v.t, entered, "second attempt"); n != 2 {
			v.t.Errorf("attempt %d, want 2", n)
		}
		gate <- nil
		eventually(v.t, "the second attempt succeeded", func() bool { st := s.Stats(); return st.Succeeded == 1 && st.Retried == 1 })
		if st := s.Stats(); len(entered) != 0 {
			v.t.Errorf("stats %+v", st)
		}
		v.empty(v.name)
	})
}

// Two tasks published under one uuid get two calls, one after the other. Tasks with different names do not affect each
// other.
func TestTasksThatShareAUUIDAreNotTakenForOne(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		var now, most, calls atomic.Int32
		other, gate := make(chan struct{}), make(chan struct{})
		v.worker(s, "w", tasks{
			"n": fn(func(int) {
				raise(&most, now.Add(1))
				<-gate
				now.Add(-1)
				calls.Add(1)
			}),
			"other": fn(func() { close(other) }),
		}, limit(5))
		for _, n := range []int{1, 1, 2} {
			task := dispatcher.NewTask("n", n)
			task.UUID = "order 7"
			v.publishTask(s, task)
		}
		eventually(v.t, "all three tasks are received", func() bool { return s.Stats().Received == 3 })
		task := dispatcher.NewTask("other")
		task.UUID = "order 7"
		v.publishTask(s, task)
		wait(v.t, other, "task of another name") // it runs while the others wait
		close(gate)
		eventually(v.t, "there are three calls", func() bool { return calls.Load() == 3 && s.Stats().Succeeded == 4 })
		if most.Load() != 1 {
			v.t.Errorf("%d tasks of one uuid ran at once", most.Load())
		}
	})
}

func TestLossesAreCounted(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		ran := make(chan dispatcher.TaskInfo, 10)
		w := v.newWorker(s, "w", tasks{"n": fn(func(ctx context.Context) { info, _ := dispatcher.TaskFromContext(ctx); ran <- info })}, limit(1))

		// After its first loss, a task goes to the back of the queue.
		v.raw(v.name, message("n", "lost once", nil))
		v.lose(v.name)
		v.raw(v.name, message("n", "innocent", nil))
		start(v.t, w, s)
		if a, b := wait(v.t, ran, "call"), wait(v.t, ran, "call"); a.UUID != "innocent" || b.UUID != "lost once" || !b.Redelivered || b.Attempt != 1 {
			v.t.Errorf("ran %+v, then %+v", a, b)
		}
		w.Close()
		if st := s.Stats(); st.Suspected != 0 || st.Succeeded != 2 {
			v.t.Errorf("after one loss: %+v", st)
		}

		// After its second loss, a task runs alone.
		v.raw(v.name, message("n", "lost twice", map[string]any{"x-dispatcher-losses": int64(1)}))
		v.lose(v.name)
		start(v.t, w, s)
		if a := wait(v.t, ran, "call"); a.UUID != "lost twice" || !a.Redelivered || a.Queue != v.name {
			v.t.Errorf("ran %+v", a)
		}
		w.Close()
		if st := s.Stats(); st.Suspected != 1 || st.Succeeded != 3 {
			v.t.Errorf("after two losses: %+v", st)
		}

		// A suspect may be lost twice more. The third loss makes it a dead letter.
		v.raw(v.name+".suspects", message("n", "unlucky", map[string]any{"x-dispatcher-losses": int64(3)}))
		v.lose(v.name + ".suspects")
		start(v.t, w, s)
		if a := wait(v.t, ran, "call"); a.UUID != "unlucky" {
			v.t.Errorf("ran %+v", a)
		}
		w.Close()
		v.raw(v.name+".suspects", message("n", "killer", map[string]any{"x-dispatcher-losses": int64(4)}))
		v.lose(v.name + ".suspects")
		start(v.t, w, s)
		if d := v.dead("crash_loop"); d.ID != "killer" || d.Headers["x-dispatcher-queue"] != v.name {
			v.t.Errorf("dead letter %+v", d.Message)
		}
		v.empty(v.name)
		v.empty(v.name + ".suspects")
	})
}

// A worker that stops releases its tasks. However often that happens, their attempts and losses do not increase.
func TestAGracefulReleaseIsNeverCharged(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		entered := make(chan dispatcher.TaskInfo, 10)
		s := v.server(func(c *dispatcher.ServerConfig) {
			c.Hooks.Started = func(e dispatcher.StartEvent) { entered <- e.Task }
		})
		var finish atomic.Bool
		w := v.newWorker(s, "w", tasks{"n": fn(func(ctx context.Context) error {
			if finish.Load() {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		})}, limit(1))
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		suspect := message("n", "suspect", map[string]any{"x-dispatcher-losses": int64(4)})
		for _, queue := range []string{v.name, v.name + ".suspects"} {
			m := message("n", "innocent", nil)
			if queue != v.name {
				m = suspect
			}
			finish.Store(false)
			v.raw(queue, m)
			for range 6 {
				start(v.t, w, s)
				wait(v.t, entered, "call")
				if err := w.Shutdown(ended); err != nil {
					v.t.Fatal(err)
				}
			}
			finish.Store(true)
			start(v.t, w, s)
			if info := wait(v.t, entered, "last call"); info.Attempt != 1 || info.Headers["x-dispatcher-losses"] != m.Headers["x-dispatcher-losses"] {
				v.t.Errorf("%s: %+v", m.ID, info)
			}
			w.Close()
		}
		if st := s.Stats(); st.Suspected != 0 || st.DeadLettered != 0 || st.Lost != 0 || st.Released < 12 || st.Succeeded != 2 {
			v.t.Errorf("stats %+v", st)
		}
	})
}

// While an abandoned call of a task still runs, its replay does not run. The same is true of another task with its
// uuid.
func TestATaskIsNotRunAgainWhileItsAbandonedCallRuns(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		var calls atomic.Int32
		gate := make(chan struct{})
		v.worker(s, "w", tasks{"n": {Timeout: 20 * time.Millisecond, Function: func() { calls.Add(1); <-gate }}}, limit(1))
		task := v.publish(s, "n")
		v.dead("timeout")
		again := message("n", task.UUID, map[string]any{"x-dispatcher-attempt": int64(7)})
		v.raw(v.name, again)
		eventually(v.t, "the task is postponed", func() bool { return s.Stats().Postponed == 1 })
		if calls.Load() != 1 {
			v.t.Errorf("%d calls while the abandoned call runs, want 1", calls.Load())
		}
		close(gate)
		eventually(v.t, "the task has run", func() bool { return s.Stats().Succeeded == 1 })
		if calls.Load() != 2 {
			v.t.Errorf("%d calls in all, want 2", calls.Load())
		}
	})
}

// A program that publishes one Task repeatedly gives all its messages the same uuid.
func TestATaskWithTheUUIDOfOneThatRanIsNotTakenForItsRedelivery(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		var calls atomic.Int32
		gate, entered := make(chan struct{}), make(chan struct{}, 9)
		v.worker(s, "w", tasks{"ping": fn(func() { calls.Add(1); entered <- struct{}{}; <-gate })}, limit(3))
		task := dispatcher.NewTask("ping")
		for range 3 {
			v.publishTask(s, task)
		}
		wait(v.t, entered, "call")
		eventually(v.t, "the others are received", func() bool { return s.Stats().Received == 3 })
		v.kill()
		eventually(v.t, "two tasks are delivered again", func() bool { return s.Stats().Received >= 5 })
		close(gate)
		eventually(v.t, "all tasks have succeeded", func() bool { return s.Stats().Succeeded == 3 })
		if calls.Load() < 3 {
			v.t.Errorf("%d calls of 3 tasks", calls.Load())
		}
	})
}

// Here the link stays. Another worker's loss marks a task that has nothing to do with the running call.
func TestOnlyALostCallGivesItsVerdictAway(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		var calls atomic.Int32
		gate, entered := make(chan struct{}), make(chan struct{}, 9)
		w := v.newWorker(s, "w", tasks{"ping": fn(func() { calls.Add(1); entered <- struct{}{}; <-gate })}, limit(3))
		task := dispatcher.NewTask("ping")
		v.publishTask(s, task)
		start(v.t, w, s)
		wait(v.t, entered, "call")
		m := message("ping", task.UUID, map[string]any{"x-dispatcher-losses": int64(1)})
		v.raw(v.name, m)
		eventually(v.t, "the task is held", func() bool { return s.Health(v.t.Context()).Workers[0].Held == 1 })
		close(gate)
		eventually(v.t, "both tasks have succeeded", func() bool { return s.Stats().Succeeded == 2 })
		if calls.Load() != 2 {
			v.t.Errorf("%d calls of 2 tasks", calls.Load())
		}
	})
}

// When a node is killed, RabbitMQ marks every message in its classic queues as redelivered, even those never delivered.
// That must not move a whole backlog, nor make suspects of tasks that were lost once before.
func TestABacklogIsNotSuspectedWhenItsNodeWasKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	r := placeOn(t, n.url)
	r.serve()
	const each, credible = 150, 20
	w := r.newWorker(nil) // declares the queues
	fill := func(queue, name string, losses any) {
		t.Helper()
		b, err := rabbitmq.New(rabbitmq.Config{URLs: []string{n.url.String()}})
		if err != nil {
			t.Fatal(err)
		}
		s, err := b.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		msgs := make([]broker.Message, each)
		for i := range msgs {
			id := fmt.Sprintf("%s %d", name, i)
			msgs[i] = message("n", id, map[string]any{"x-dispatcher-losses": losses})
			msgs[i].RoutingKey = queue
		}
		errs := make(chan error, each)
		s.Publish(t.Context(), msgs, func(_ int, err error) { errs <- err })
		for range msgs {
			if err := wait(t, errs, "confirmation"); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	fill(r.name, "new", nil)
	fill(r.name, "lost once", int64(1))
	fill(r.name+".suspects", "suspect", int64(4)) // one more loss would make each a dead letter
	w.Close()

	n.kill(n.pid())
	n.scripts("start")
	r.healed()
	var mu sync.Mutex
	ran := map[string]bool{}
	again, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "again", Queue: r.name, Limit: 5}, tasks{
		"n": fn(func(ctx context.Context) {
			info, _ := dispatcher.TaskFromContext(ctx)
			mu.Lock()
			defer mu.Unlock()
			ran[info.UUID] = true
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	start(t, again, r.server)
	eventually(t, "all tasks have run", func() bool { mu.Lock(); defer mu.Unlock(); return len(ran) == 3*each })
	moved := strings.Count(r.log.String(), "moved to the back of the queue")
	s := r.server.Stats()
	t.Logf("%d tasks moved to the back of the queue, %d became suspects", moved, s.Suspected)
	if moved == 0 || moved > credible || s.Suspected > credible || s.DeadLettered != 0 {
		t.Errorf("%d tasks moved, stats %+v; want at most %d moved or suspected, and no dead letter", moved, s, credible)
	}
	r.queueIs(r.name, 0)
	r.queueIs(r.name+".suspects", 0)
}
