package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// A suspect that fails like any other task has not killed its worker. It is retried in its own queue.
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

// Workers that do not know a suspect must leave it among the suspects. Otherwise it would kill the workers that know it
// again and again.
func TestASuspectThatNobodyKnowsStaysOne(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		old := v.newWorker(s, "old", tasks{"other": fn(func() {})})
		v.raw(v.name+".suspects", message("n", "u", map[string]any{"x-dispatcher-losses": int64(4)}))
		start(v.t, old, s)
		eventually(v.t, "the suspect is postponed", func() bool { return s.Stats().Postponed == 1 })
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

// A postponed suspect stays a suspect. In its queue it would not run alone, and if it killed its worker, its losses
// would be counted from zero.
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
		eventually(v.t, "the suspect is postponed", func() bool { return s.Stats().Postponed == 1 })
		w.Close()
		if d := v.take(v.name+".suspects", 1)[0]; d.Headers["x-dispatcher-losses"] != int64(4) {
			v.t.Errorf("headers %v", d.Headers)
		}
		close(gate)
	})
}

func TestSuspectsRunOneAtATime(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		var now, most, all atomic.Int32
		set := tasks{"n": fn(func() {
			raise(&most, now.Add(1))
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
		eventually(v.t, "all suspects have run", func() bool { return all.Load() == 10 })
		if most.Load() != 1 {
			v.t.Errorf("%d suspects ran at once", most.Load())
		}
	})
}

// The workers wait in one line for the turn to run a suspect. When each of fifty workers polled by itself, they blocked
// each other for minutes, at full load.
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

// A worker that stops while it fetches a suspect releases the suspect without a loss.
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
		t.Errorf("%v, %v, fetch interrupted: %v", ds, err, b.broken.Load())
	}
}

// A suspect does not wait for another call of its task. That would keep all other suspects of the server waiting.
func TestASuspectWhoseTaskRunsDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate, ran := make(chan struct{}), make(chan string, 9)
		r.worker("w", tasks{
			"long":  fn(func() { <-gate }),
			"other": fn(func() { ran <- "other" }),
		}, limit(2))
		task := r.publish("long")
		synctest.Wait()
		r.publishRaw("jobs.suspects", message("long", task.UUID, map[string]any{"x-dispatcher-losses": int64(3)}))
		r.publishRaw("jobs.suspects", message("other", "u", nil))
		<-time.After(time.Minute)
		if len(ran) != 1 {
			t.Error("the other suspect has not run")
		}
		close(gate)
		<-time.After(time.Minute)
		if st := r.server.Stats(); st.Succeeded != 3 || st.DeadLettered != 0 {
			t.Errorf("stats %+v", st)
		}
	})
}

// If a queue of suspects does not answer, its worker keeps no slot and no turn busy. A suspect that arrives late is
// released without a loss.
func TestALateSuspectIsGivenBackUncharged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &slowGet{entered: make(chan struct{}, 99), gate: make(chan struct{})}
		var ran atomic.Int32
		r := newRig(t, func(c *dispatcher.ServerConfig) { b.Broker, c.Broker = c.Broker, b })
		w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "jobs", BindingKeys: []string{"jobs"}, Limit: 1}, tasks{"n": fn(func() { ran.Add(1) })})
		if err != nil {
			t.Fatal(err)
		}
		r.publishRaw("jobs.suspects", message("n", "u", map[string]any{"x-dispatcher-losses": int64(4)}))
		start(t, w, r.server)
		<-time.After(6 * time.Second)
		r.publish("n")
		<-time.After(time.Second)
		if ran.Load() != 1 {
			t.Error("the only slot is blocked by the queue of suspects")
		}
		<-time.After(time.Hour)
		if n := len(b.entered); n != 1 {
			t.Errorf("%d fetches at once", n)
		}
		close(b.gate)
		<-time.After(time.Minute)
		if st := r.server.Stats(); b.broken.Load() || st.Released != 1 || st.DeadLettered != 0 || ran.Load() != 2 {
			t.Errorf("fetch interrupted: %v, %d calls, stats %+v", b.broken.Load(), ran.Load(), st)
		}
	})
}

// Even then, a worker ends within seconds.
func TestAFetchThatIsNotAnsweredDoesNotHoldUpShutdown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &slowGet{entered: make(chan struct{}, 99), gate: make(chan struct{})}
		r := newRig(t, func(c *dispatcher.ServerConfig) { b.Broker, c.Broker = c.Broker, b })
		w := r.worker("w", tasks{})
		<-time.After(time.Minute)
		began := time.Now()
		if err := w.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("took %v", took)
		}
	})
}
