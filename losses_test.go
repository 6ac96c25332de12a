package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// What becomes of tasks whose worker or link was lost, and of those that are delivered while they run.

// A task whose link is lost while it runs comes again at once, to the process that still runs it.
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
		// Not Stats.Received, which counts a delivery a moment before it finds the running call.
		eventually(v.t, "delivered again, and held", func() bool { return s.Health(v.t.Context()).Workers[0].Held == 1 })
		gate <- errors.New("no") // its verdict, a retry, is taken by the delivery that is held
		if n := wait(v.t, entered, "second attempt"); n != 2 {
			v.t.Errorf("attempt %d, want 2", n)
		}
		gate <- nil
		eventually(v.t, "done", func() bool { st := s.Stats(); return st.Succeeded == 1 && st.Retried == 1 })
		if st := s.Stats(); len(entered) != 0 {
			v.t.Errorf("stats %+v", st)
		}
		v.empty(v.name)
	})
}

// Whoever publishes two tasks under one uuid gets two calls, one after the other; different names have nothing to do with each other.
func TestTasksThatShareAUUIDAreNotTakenForOne(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		var now, most, calls atomic.Int32
		other, gate := make(chan struct{}), make(chan struct{})
		v.worker(s, "w", tasks{
			"n": fn(func(int) {
				if n := now.Add(1); n > most.Load() {
					most.Store(n)
				}
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
		eventually(v.t, "all three are taken", func() bool { return s.Stats().Received == 3 })
		task := dispatcher.NewTask("other")
		task.UUID = "order 7"
		v.publishTask(s, task)
		wait(v.t, other, "task of another name") // while the others wait
		close(gate)
		eventually(v.t, "three calls", func() bool { return calls.Load() == 3 && s.Stats().Succeeded == 4 })
		if most.Load() != 1 {
			v.t.Errorf("%d of one uuid at once", most.Load())
		}
	})
}

func message(name, uuid string, headers map[string]any) broker.Message {
	return broker.Message{ID: uuid, Body: fmt.Appendf(nil, `{"uuid":%q,"name":%q,"args":null}`, uuid, name), Headers: headers}
}

func TestLossesAreCounted(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		ran := make(chan dispatcher.TaskInfo, 10)
		w := v.newWorker(s, "w", tasks{"n": fn(func(ctx context.Context) { info, _ := dispatcher.TaskFromContext(ctx); ran <- info })}, limit(1))

		// The first: to the back of the queue.
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

		// The second: it runs alone.
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

		// Two more there are borne, the third is not.
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

func start(t *testing.T, w *dispatcher.Worker, s *dispatcher.Server) {
	t.Helper()
	if err := w.Start(s); err != nil {
		t.Fatal(err)
	}
}

// A suspect that fails like any other task has not killed its worker: it is tried again in its own queue.
func TestASuspectThatFailsIsRehabilitated(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		ran := make(chan dispatcher.TaskInfo, 10)
		s := v.server(func(c *dispatcher.ServerConfig) {
			c.Retry = fast(2)
			c.Hooks.Started = func(e dispatcher.StartEvent) { ran <- e.Task }
		})
		w := v.newWorker(s, "w", tasks{"n": fn(func() error { return errors.New("no") })})
		v.raw(v.name+".suspects", message("n", "u", map[string]any{"x-dispatcher-losses": int64(4)}))
		start(v.t, w, s)
		if a, b := wait(v.t, ran, "call"), wait(v.t, ran, "call"); a.Attempt != 1 || b.Attempt != 2 || b.Redelivered || b.Headers["x-dispatcher-losses"] != nil {
			v.t.Errorf("ran %+v, then %+v", a, b)
		}
		v.dead("failed")
	})
}

// A suspect that only some workers know must not get out of its line by being missed, or it would end those for ever.
func TestASuspectThatNobodyKnowsStaysOne(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		old := v.newWorker(s, "old", tasks{"other": fn(func() {})})
		v.raw(v.name+".suspects", message("n", "u", map[string]any{"x-dispatcher-losses": int64(4)}))
		start(v.t, old, s)
		eventually(v.t, "missed", func() bool { return s.Stats().Postponed == 1 })
		old.Close()
		if d := v.take(v.name+".suspects", 1)[0]; d.Headers["x-dispatcher-losses"] != int64(4) || d.Headers["x-dispatcher-misses"] != int64(1) {
			v.t.Errorf("headers %v", d.Headers)
		}
		v.raw(v.name+".suspects", message("n", "u", map[string]any{"x-dispatcher-losses": int64(4), "x-dispatcher-misses": int64(1)}))
		ran := make(chan dispatcher.TaskInfo, 1)
		v.worker(s, "new", tasks{"n": fn(func(ctx context.Context) { info, _ := dispatcher.TaskFromContext(ctx); ran <- info })})
		if info := wait(v.t, ran, "call"); info.UUID != "u" {
			v.t.Errorf("got %+v", info)
		}
		if st := s.Stats(); st.Suspected != 0 || st.Postponed != 1 {
			v.t.Errorf("stats %+v", st)
		}
	})
}

func TestSuspectsRunOneAtATime(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		var now, most, all atomic.Int32
		set := tasks{"n": fn(func() {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-time.After(5 * time.Millisecond)
			now.Add(-1)
			all.Add(1)
		})}
		a, b := v.newWorker(s, "a", set), v.newWorker(s, "b", set)
		for i := range 10 {
			v.raw(v.name+".suspects", message("n", fmt.Sprint(i), map[string]any{"x-dispatcher-losses": int64(2)}))
		}
		start(v.t, a, s)
		start(v.t, b, s)
		eventually(v.t, "all run", func() bool { return all.Load() == 10 })
		if most.Load() != 1 {
			v.t.Errorf("%d at once", most.Load())
		}
	})
}

// What a worker gives back when it stops is not charged, however often that happens.
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

// A replay, or a second publish with the same uuid, while an abandoned call of the task still runs.
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
		eventually(v.t, "put off", func() bool { return s.Stats().Postponed == 1 })
		if calls.Load() != 1 {
			v.t.Errorf("%d calls", calls.Load())
		}
		close(gate)
		eventually(v.t, "run in the end", func() bool { return s.Stats().Succeeded == 1 })
		if calls.Load() != 2 {
			v.t.Errorf("%d calls", calls.Load())
		}
	})
}

// A program that publishes one Task again and again gives all of them its uuid.
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
		eventually(v.t, "the others are held", func() bool { return s.Stats().Received == 3 })
		v.kill()
		eventually(v.t, "two are delivered again", func() bool { return s.Stats().Received >= 5 })
		close(gate)
		eventually(v.t, "all are done", func() bool { return s.Stats().Succeeded == 3 })
		if calls.Load() < 3 {
			v.t.Errorf("%d calls of 3 tasks", calls.Load())
		}
	})
}

// The same with a link that stays: another worker's loss marks a task that has nothing to do with the call.
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
		eventually(v.t, "held", func() bool { return s.Health(v.t.Context()).Workers[0].Held == 1 })
		close(gate)
		eventually(v.t, "both are done", func() bool { return s.Stats().Succeeded == 2 })
		if calls.Load() != 2 {
			v.t.Errorf("%d calls of 2 tasks", calls.Load())
		}
	})
}

// Beside the others it would not run alone, and if it ended its worker its losses would be counted anew.
func TestASuspectThatIsPutOffStaysOne(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		gate := make(chan struct{})
		v.worker(s, "stuck", tasks{"n": {Timeout: 20 * time.Millisecond, Function: func() { <-gate }}})
		task := v.publish(s, "n")
		v.dead("timeout")
		w := v.newWorker(s, "w", tasks{"n": fn(func() {})})
		v.raw(v.name+".suspects", message("n", task.UUID, map[string]any{"x-dispatcher-losses": int64(4)}))
		start(v.t, w, s)
		eventually(v.t, "put off", func() bool { return s.Stats().Postponed == 1 })
		w.Close()
		if d := v.take(v.name+".suspects", 1)[0]; d.Headers["x-dispatcher-losses"] != int64(4) {
			v.t.Errorf("headers %v", d.Headers)
		}
		close(gate)
	})
}

// They wait in one line for their turn. When each looked for itself, fifty kept each other from it for minutes, at full load.
func TestManyWorkersRunTheirSuspects(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const workers, each = 50, 10
	ran := make(chan struct{}, workers*each)
	for i := range workers {
		queue := fmt.Sprint("jobs-", i)
		w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: queue, Queue: queue}, tasks{"n": fn(func() { ran <- struct{}{} })})
		if err != nil {
			t.Fatal(err)
		}
		for n := range each {
			r.publishRaw(queue+".suspects", message("n", fmt.Sprint(n), map[string]any{"x-dispatcher-losses": int64(2)}))
		}
		start(t, w, r.server)
	}
	for range workers * each {
		wait(t, ran, "call")
	}
}

// slowGet is a broker whose TryGet takes until the gate opens.
type slowGet struct {
	broker.Broker
	entered, gate chan struct{}
	broken        atomic.Bool // it did not get so far
}

func (b *slowGet) Open(ctx context.Context) (broker.Session, error) {
	s, err := b.Broker.Open(ctx)
	return slowSession{s, b}, err
}

type slowSession struct {
	broker.Session
	*slowGet
}

func (s slowSession) TryGet(ctx context.Context, queue string, n int) ([]broker.Delivery, error) {
	s.entered <- struct{}{}
	select {
	case <-s.gate:
	case <-ctx.Done():
		s.broken.Store(true) // RabbitMQ may have handed it out by now, and counts that as a loss
		return nil, ctx.Err()
	}
	return s.Session.TryGet(ctx, queue, n)
}

// A worker that stops while it fetches a suspect returns it uncharged.
func TestStoppingDoesNotBreakOffTheFetchOfASuspect(t *testing.T) {
	t.Parallel()
	b := &slowGet{entered: make(chan struct{}, 9), gate: make(chan struct{})}
	r := newRig(t, func(c *dispatcher.ServerConfig) { b.Broker, c.Broker = c.Broker, b })
	w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "jobs"}, tasks{"n": fn(func() { t.Error("called") })})
	if err != nil {
		t.Fatal(err)
	}
	r.publishRaw("jobs.suspects", message("n", "u", nil))
	start(t, w, r.server)
	wait(t, b.entered, "fetch")
	done := make(chan struct{})
	go func() { w.Close(); close(done) }()
	eventually(t, "the worker has stopped consuming", func() bool { return r.inspect("jobs").Consumers == 0 })
	close(b.gate)
	wait(t, done, "end of Close")
	ds, err := r.session().TryGet(t.Context(), "jobs.suspects", 1)
	if err != nil || len(ds) != 1 || ds[0].Losses != 0 || b.broken.Load() {
		t.Errorf("%v, %v, broken off %v", ds, err, b.broken.Load())
	}
}
