package dispatcher_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

func TestNewWorkerNamesEveryBadField(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.worker("taken", tasks{"n": fn(func() {})})
	var nilFunc func()
	ok := dispatcher.WorkerConfig{Name: "w", Queue: "q"}
	for name, c := range map[string]struct {
		cfg  dispatcher.WorkerConfig
		set  tasks
		is   error
		text string
	}{
		"no name":          {dispatcher.WorkerConfig{Queue: "q"}, nil, dispatcher.ErrWorkerNameRequired, "Worker name is required parameter"},
		"no queue":         {dispatcher.WorkerConfig{Name: "w"}, nil, dispatcher.ErrWorkerQueueRequired, "Worker queue is required parameter"},
		"duplicate":        {dispatcher.WorkerConfig{Name: "taken", Queue: "q"}, nil, dispatcher.ErrWorkerExists, "Worker with the same name already exists"},
		"negative limit":   {dispatcher.WorkerConfig{Name: "w", Queue: "q", Limit: -1}, nil, nil, "WorkerConfig.Limit is negative"},
		"huge limit":       {dispatcher.WorkerConfig{Name: "w", Queue: "q", Limit: 1 << 30}, nil, nil, "WorkerConfig.Limit"},
		"long queue":       {dispatcher.WorkerConfig{Name: "w", Queue: strings.Repeat("q", 241)}, nil, nil, "the most is 240"},
		"dead queue":       {dispatcher.WorkerConfig{Name: "w", Queue: "q.dead"}, nil, nil, ".dead"},
		"suspects queue":   {dispatcher.WorkerConfig{Name: "w", Queue: "q.suspects"}, nil, nil, ".suspects"},
		"long name":        {dispatcher.WorkerConfig{Name: strings.Repeat("n", 256), Queue: "q"}, nil, nil, "WorkerConfig.Name"},
		"long key":         {dispatcher.WorkerConfig{Name: "w", Queue: "q", BindingKeys: []string{strings.Repeat("k", 256)}}, nil, nil, "BindingKeys[0]"},
		"nil function":     {ok, tasks{"mail": fn(nil)}, nil, `"mail"`},
		"nil func value":   {ok, tasks{"mail": fn(nilFunc)}, nil, `"mail"`},
		"not a function":   {ok, tasks{"mail": fn(42)}, nil, `"mail"`},
		"chan parameter":   {ok, tasks{"mail": fn(func(int, chan int) {})}, nil, `"mail"`},
		"func parameter":   {ok, tasks{"mail": fn(func(func()) {})}, nil, `"mail"`},
		"late context":     {ok, tasks{"mail": fn(func(int, context.Context) {})}, nil, `"mail"`},
		"uuid into int":    {ok, tasks{"mail": {Function: func(int) {}, TaskUUIDAsFirstArg: true}}, nil, `"mail"`},
		"empty task name":  {ok, tasks{"": fn(func() {})}, nil, "empty name"},
		"long task name":   {ok, tasks{strings.Repeat("t", 256): fn(func() {})}, nil, "256 bytes"},
		"negative timeout": {ok, tasks{"mail": {Function: func() {}, TimeoutSeconds: -1}}, nil, `"mail"`},
		"endless timeout":  {ok, tasks{"mail": {Function: func() {}, TimeoutSeconds: 1 << 62}}, nil, `"mail"`},
		"both timeouts":    {ok, tasks{"mail": {Function: func() {}, TimeoutSeconds: 1, Timeout: time.Second}}, nil, "both set"},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := r.server.NewWorker(&c.cfg, c.set)
			if w != nil || err == nil {
				t.Fatalf("got %v, %v; want an error", w, err)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("got %v, want %v", err, c.is)
			}
			if !strings.Contains(err.Error(), c.text) {
				t.Errorf("%q does not say %q", err, c.text)
			}
		})
	}
	if _, err := r.server.NewWorker(nil, nil); err == nil {
		t.Error("nil config: no error")
	}
	if _, err := r.server.GetWorkerByName("w"); !errors.Is(err, dispatcher.ErrWorkerNotFound) || err.Error() != "Worker not found" {
		t.Errorf("got %v: a refused worker must not be registered", err)
	}
	if _, err := r.server.NewWorker(&ok, nil); err != nil {
		t.Errorf("the name of a refused worker stays free: %v", err)
	}
}

func TestTaskRunsWithItsArguments(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	type order struct {
		ID    int64
		Lines []string
	}
	type seen struct {
		uuid, s string
		n       int64
		rest    []int
		o       order
		info    dispatcher.TaskInfo
	}
	got := make(chan seen, 1)
	r.worker("w", tasks{
		"all": {TaskUUIDAsFirstArg: true, Function: func(ctx context.Context, uuid, s string, n int64, o *order, rest ...int) error {
			info, ok := dispatcher.TaskFromContext(ctx)
			if !ok {
				t.Error("no task in the context")
			}
			got <- seen{uuid, s, n, rest, *o, info}
			return nil
		}},
	})
	task := dispatcher.NewTask("all", "é<>", int64(-1<<63), order{1<<53 + 1, []string{"x"}}, 1, 2, 3)
	task.Headers = map[string]interface{}{"k": "v"}
	if err := r.server.Publish(task); err != nil {
		t.Fatal(err)
	}
	s := wait(t, got, "task")
	if s.uuid != task.UUID || s.s != "é<>" || s.n != -1<<63 || len(s.rest) != 3 || s.o.ID != 1<<53+1 || s.o.Lines[0] != "x" {
		t.Errorf("got %+v", s)
	}
	i := s.info
	if i.UUID != task.UUID || i.Name != "all" || i.Queue != "jobs" || i.RoutingKey != "jobs" || i.Worker != "w" ||
		i.Headers["k"] != "v" || i.PublishedAt.IsZero() || i.Redelivered {
		t.Errorf("info %+v", i)
	}
	eventually(t, "acknowledged", func() bool { return r.server.Stats().Succeeded == 1 })
	if info := r.inspect("jobs"); info.Ready != 0 || info.Unsettled != 0 {
		t.Errorf("queue %+v, want empty", info)
	}
	if _, ok := dispatcher.TaskFromContext(context.Background()); ok {
		t.Error("a task in a foreign context")
	}
}

func TestLimitBoundsCallsAndPrefetch(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var now, most atomic.Int32
	gate, entered := make(chan struct{}), make(chan struct{}, 100)
	r.worker("w", tasks{"n": fn(func() {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		entered <- struct{}{}
		<-gate
		now.Add(-1)
	})}, limit(4))
	for range 20 {
		r.publish("n")
	}
	for range 4 {
		wait(t, entered, "call")
	}
	if info := r.inspect("jobs"); info.Unsettled != 4 || info.Ready != 16 {
		t.Errorf("queue %+v, want 4 handed out and 16 waiting", info)
	}
	close(gate)
	for range 16 {
		wait(t, entered, "call")
	}
	if most.Load() != 4 {
		t.Errorf("%d calls at once, want 4", most.Load())
	}
}

func TestDefaultLimitIsThree(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	gate, entered := make(chan struct{}), make(chan struct{}, 10)
	defer close(gate)
	cfg := dispatcher.WorkerConfig{Name: "w", Queue: "jobs", BindingKeys: []string{"jobs"}}
	w, err := r.server.NewWorker(&cfg, tasks{"n": fn(func() { entered <- struct{}{}; <-gate })})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(r.server); err != nil {
		t.Fatal(err)
	}
	if cfg.Limit != 0 {
		t.Error("the caller's config was written")
	}
	for range 5 {
		r.publish("n")
	}
	for range 3 {
		wait(t, entered, "call")
	}
	if info := r.inspect("jobs"); info.Unsettled != 3 {
		t.Errorf("%d handed out, want 3", info.Unsettled)
	}
}

func TestSeveralWorkersShareAServerByKeysAndAQueueByTurns(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	got := make(chan string, 100)
	note := func(ctx context.Context) {
		info, _ := dispatcher.TaskFromContext(ctx)
		got <- info.Worker
	}
	for _, name := range []string{"mail", "pdf"} {
		cfg := dispatcher.WorkerConfig{Name: name, Queue: name, BindingKeys: []string{name, name + "2"}}
		w, err := r.server.NewWorker(&cfg, tasks{"n": fn(note)})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Start(r.server); err != nil {
			t.Fatal(err)
		}
		if same, err := r.server.GetWorkerByName(name); err != nil || same != w {
			t.Errorf("%v, %v", same, err)
		}
	}
	for _, key := range []string{"mail", "mail2", "pdf", "pdf2"} {
		if err := r.server.Publish(&dispatcher.Task{Name: "n", RoutingKey: key}); err != nil {
			t.Fatal(err)
		}
		if w := wait(t, got, "task"); w != strings.TrimSuffix(key, "2") {
			t.Errorf("key %s ran on %s", key, w)
		}
	}
}

// D12: the ancestor started a second consume loop and lost the first.
func TestD12StartingTwiceIsAnErrorAndRestartingWorks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	got := make(chan struct{}, 10)
	w := r.worker("w", tasks{"n": fn(func() { got <- struct{}{} })})
	if err := w.Start(r.server); !errors.Is(err, dispatcher.ErrWorkerStarted) {
		t.Errorf("got %v, want ErrWorkerStarted", err)
	}
	if n := r.inspect("jobs").Consumers; n != 1 {
		t.Errorf("%d consumers, want 1", n)
	}
	for range 3 {
		w.Close()
		if n := r.inspect("jobs").Consumers; n != 0 {
			t.Errorf("%d consumers after Close", n)
		}
		r.publish("n")
		if err := w.Start(r.server); err != nil {
			t.Fatal(err)
		}
		wait(t, got, "task")
	}
	if err := w.Start(nil); err == nil {
		t.Error("nil server: no error")
	}
	if err := w.Start(newRig(t).server); err == nil || errors.Is(err, dispatcher.ErrWorkerStarted) {
		t.Errorf("foreign server: %v", err)
	}
}

func TestD12StartAndCloseSideBySide(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var ran atomic.Int64
	w := r.worker("w", tasks{"n": fn(func() { ran.Add(1) })})
	done := make(chan struct{})
	for range 8 {
		go func() {
			defer func() { done <- struct{}{} }()
			for range 30 {
				w.Close()
				if err := w.Start(r.server); err != nil && !errors.Is(err, dispatcher.ErrWorkerStarted) && !errors.Is(err, dispatcher.ErrShutdown) {
					t.Error(err)
				}
			}
		}()
	}
	for range 100 {
		r.publish("n")
	}
	for range 8 {
		wait(t, done, "end of a loop")
	}
	if err := w.Start(r.server); err != nil && !errors.Is(err, dispatcher.ErrWorkerStarted) {
		t.Fatal(err)
	}
	eventually(t, "all 100 tasks run", func() bool { return ran.Load() == 100 })
	if n := r.inspect("jobs").Consumers; n != 1 {
		t.Errorf("%d consumers, want 1", n)
	}
}

func TestStartWhileDisconnectedIsAnErrorWithTheSeedsText(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.worker("w", tasks{"n": fn(func() {})})
	w.Close()
	r.chaos.FailOpen(errors.New("down"))
	r.chaos.Kill()
	eventually(t, "disconnected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnecting })
	err := w.Start(r.server)
	if !errors.Is(err, dispatcher.ErrWorkerDisconnected) || err.Error() != "Can't start worker, because you are not connected to AMQP" {
		t.Errorf("got %v", err)
	}
	r.chaos.FailOpen(nil)
	eventually(t, "connected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnected })
	if err := w.Start(r.server); err != nil {
		t.Error(err)
	}
}

// D8: in the ancestor, timeouts removed the bound on concurrency.
func TestD8TimedOutCallsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var now, most atomic.Int32
		gate := make(chan struct{})
		r.worker("w", tasks{"stuck": {Timeout: time.Second, Function: func() {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-gate
			now.Add(-1)
		}}}, limit(2), func(c *dispatcher.WorkerConfig) { c.MaxAbandoned = 3 })
		for range 10 {
			r.publish("stuck")
		}
		<-time.After(time.Minute)
		synctest.Wait()
		w := r.server.Health(t.Context()).Workers[0]
		if now.Load() != 5 || w.Running != 5 || w.Abandoned != 3 {
			t.Errorf("%d calls run; health %+v; want Limit 2 + MaxAbandoned 3", now.Load(), w)
		}
		if w.Ready != 5 || w.Dead != 3 {
			t.Errorf("%d waiting, %d dead; want 5 and 3", w.Ready, w.Dead)
		}
		for _, d := range r.dead(3) {
			if d.Headers["x-dispatcher-reason"] != "timeout" {
				t.Errorf("reason %v", d.Headers["x-dispatcher-reason"])
			}
		}
		close(gate)
		synctest.Wait()
		if n := now.Load(); n != 0 {
			t.Errorf("%d calls still run", n)
		}
		// Those that waited run now. The two overdue ones at the bound either returned first, and their work is done, or were
		// abandoned in the moment an abandoned call made room.
		if s := r.server.Stats(); s.Abandoned > 5 || s.Succeeded < 5 || s.DeadLettered != s.Abandoned || s.Succeeded+s.DeadLettered != 10 {
			t.Errorf("stats %+v", s)
		}
		if most.Load() != 5 {
			t.Errorf("%d at once, want 5", most.Load())
		}
	})
}

func TestAnAbandonedCallThatEndsMakesRoomForTheNextOverdueOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gates := make(chan chan struct{}, 10)
		r.worker("w", tasks{"stuck": {Timeout: time.Second, Function: func() {
			g := make(chan struct{})
			gates <- g
			<-g
		}}}, limit(1), func(c *dispatcher.WorkerConfig) { c.MaxAbandoned = 1 })
		for range 4 {
			r.publish("stuck")
		}
		for range 4 {
			<-time.After(10 * time.Second)
			close(<-gates) // the oldest call ends; its room goes to the overdue one, whose slot starts the next task
		}
		<-time.After(10 * time.Second)
		for len(gates) > 0 {
			close(<-gates)
		}
		synctest.Wait()
		if s := r.server.Stats(); s.Received != 4 || s.DeadLettered+s.Succeeded != 4 {
			t.Errorf("stats %+v, want 4 received and settled", s)
		}
		if w := r.server.Health(t.Context()).Workers[0]; w.Running != 0 || w.Abandoned != 0 {
			t.Errorf("health %+v", w)
		}
	})
}

func TestWithoutAbandoningAnOverdueCallKeepsItsSlot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate := make(chan struct{})
		r.worker("w", tasks{"stuck": {TimeoutSeconds: 1, Function: func() error { <-gate; return errors.New("late") }}},
			limit(1), func(c *dispatcher.WorkerConfig) { c.MaxAbandoned = -1 })
		r.publish("stuck")
		r.publish("stuck")
		<-time.After(time.Hour)
		if w := r.server.Health(t.Context()).Workers[0]; w.Running != 1 || w.Ready != 1 {
			t.Errorf("health %+v, want one running and one waiting", w)
		}
		close(gate)
		for _, d := range r.dead(2) {
			if d.Headers["x-dispatcher-worker"] != "w" {
				t.Errorf("headers %v", d.Headers)
			}
		}
	})
}

func TestTimeoutCancelsTheContextWithItsCause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		began := time.Now()
		r.worker("w", tasks{
			"obeys": {Timeout: 5 * time.Second, Function: func(ctx context.Context) error {
				if at, ok := ctx.Deadline(); !ok || at.Sub(began) != 5*time.Second {
					t.Errorf("deadline %v, %v", at, ok)
				}
				<-ctx.Done()
				if !errors.Is(ctx.Err(), context.DeadlineExceeded) || !errors.Is(context.Cause(ctx), dispatcher.ErrTimeout) {
					t.Errorf("err %v, cause %v", ctx.Err(), context.Cause(ctx))
				}
				return ctx.Err()
			}},
			"just done": {Timeout: 5 * time.Second, Function: func(ctx context.Context) error { <-ctx.Done(); return nil }},
		})
		r.publish("obeys")
		d := r.dead(1)[0]
		if d.Headers["x-dispatcher-reason"] != "timeout" || time.Since(began) != 5*time.Second {
			t.Errorf("reason %v after %v", d.Headers["x-dispatcher-reason"], time.Since(began))
		}
		r.publish("just done")
		<-time.After(10 * time.Second)
		if s := r.server.Stats(); s.Succeeded != 1 || s.DeadLettered != 1 || s.Abandoned != 0 {
			t.Errorf("stats %+v: a function that returns nil has done its work", s)
		}
	})
}

// D2: a panic in a task with a timeout ended the ancestor's process; one without was acknowledged, which lost the task.
func TestD2APanicIsAFailedAttempt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ran := make(chan struct{}, 1)
	r.worker("w", tasks{
		"timed":   {Timeout: time.Minute, Function: func() { panic("boom") }},
		"untimed": fn(func(i int) { _ = []int{}[i] }),
		"nil":     fn(func() { panic(any(nil)) }),
		"goexit":  fn(func() { runtime.Goexit() }),
		"evil":    fn(func() error { return evilError{} }),
		"fine":    fn(func() { ran <- struct{}{} }),
	}, limit(1))
	for name, want := range map[string]string{
		"timed": "boom", "untimed": "out of range", "nil": "panic called with nil", "goexit": "Goexit", "evil": "PANIC",
	} {
		if name == "untimed" {
			r.publish(name, 7)
		} else {
			r.publish(name)
		}
		d := r.dead(1)[0]
		text, _ := d.Headers["x-dispatcher-error"].(string)
		if d.Headers["x-dispatcher-reason"] != "failed" || !strings.Contains(text, want) || d.Type != name {
			t.Errorf("%s: %v", name, d.Headers)
		}
	}
	r.publish("fine")
	wait(t, ran, "task after the panics: the slot is lost")
}

type evilError struct{}

func (evilError) Error() string { panic("in Error") }

func TestGoexitWithATimeoutKeepsTheSlots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.worker("w", tasks{"late": {Timeout: time.Second, Function: func() { <-time.After(time.Minute); runtime.Goexit() }}}, limit(2))
		for range 6 {
			r.publish("late")
		}
		<-time.After(time.Hour)
		if s := r.server.Stats(); s.DeadLettered != 6 || s.Received != 6 {
			t.Errorf("stats %+v", s)
		}
		if w := r.server.Health(t.Context()).Workers[0]; w.Running != 0 || w.Abandoned != 0 {
			t.Errorf("health %+v", w)
		}
	})
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
			t.Error("redelivered at first")
		}
		r.chaos.Kill()
		if !<-entered { // the other slot has it again, while the first call still runs
			t.Error("not marked as redelivered")
		}
		close(gate)
		synctest.Wait()
		if s := r.server.Stats(); s.Lost != 1 || s.Succeeded != 1 {
			t.Errorf("stats %+v, want one lost and one success", s)
		}
		if !strings.Contains(r.log.String(), "deliver it again") {
			t.Error("a lost settlement is not in the log")
		}
	})
}

func TestHealthSaysWhatAWorkerDoes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	gate, entered := make(chan struct{}), make(chan struct{}, 9)
	w := r.worker("w", tasks{"n": fn(func() { entered <- struct{}{}; <-gate })}, limit(1))
	r.publish("n")
	r.publish("n")
	wait(t, entered, "call")
	h := r.server.Health(t.Context())
	if len(h.Workers) != 1 || !h.OK() || h.State != dispatcher.StateConnected {
		t.Fatalf("health %+v", h)
	}
	if wh := h.Workers[0]; wh.Name != "w" || wh.Queue != "jobs" || !wh.Started || !wh.Consuming || wh.Running != 1 || wh.Ready != 1 || wh.Dead != 0 {
		t.Errorf("worker %+v", wh)
	}
	close(gate)
	w.Close()
	if wh := r.server.Health(t.Context()).Workers[0]; wh.Started || wh.Consuming || wh.Running != 0 {
		t.Errorf("after Close %+v", wh)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if wh := r.server.Health(ended).Workers[0]; wh.Ready != -1 || wh.Dead != -1 {
		t.Errorf("with an ended context %+v, want not known", wh)
	}
	r.server.Close()
	if h := r.server.Health(t.Context()); h.State != dispatcher.StateClosed || h.OK() {
		t.Errorf("after Close %+v", h)
	}
}
