package systemtest_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
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
		"low prefetch":     {dispatcher.WorkerConfig{Name: "w", Queue: "q", Prefetch: 2}, nil, nil, "WorkerConfig.Prefetch is 2, less than the Limit, 3"},
		"no prefetch":      {dispatcher.WorkerConfig{Name: "w", Queue: "q", Limit: 1, Prefetch: -1}, nil, nil, "WorkerConfig.Prefetch is -1, less than the Limit, 1"},
		"large prefetch":   {dispatcher.WorkerConfig{Name: "w", Queue: "q", Prefetch: 65_536}, nil, nil, "WorkerConfig.Prefetch is 65536, the maximum is 65535"},
		"negative limit":   {dispatcher.WorkerConfig{Name: "w", Queue: "q", Limit: -1}, nil, nil, "WorkerConfig.Limit is negative"},
		"huge limit":       {dispatcher.WorkerConfig{Name: "w", Queue: "q", Limit: 1 << 30}, nil, nil, "WorkerConfig.Limit"},
		"long queue":       {dispatcher.WorkerConfig{Name: "w", Queue: strings.Repeat("q", 241)}, nil, nil, "the maximum is 240"},
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
		"task name bytes":  {ok, tasks{"\xff": fn(func() {})}, nil, "UTF-8"},
		"queue bytes":      {dispatcher.WorkerConfig{Name: "w", Queue: "q\xff"}, nil, nil, "WorkerConfig.Queue"},
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
				t.Errorf("%q does not contain %q", err, c.text)
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
		t.Errorf("NewWorker with the name of a refused worker: %v", err)
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
			mine, _ := dispatcher.TaskFromContext(ctx)
			mine.Headers["k"] = "changed" // changes a copy, which a redelivery must not see
			info, ok := dispatcher.TaskFromContext(ctx)
			if !ok {
				t.Error("the context has no task")
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
	eventually(t, "the task is acked", func() bool { return r.server.Stats().Succeeded == 1 })
	if info := r.inspect("jobs"); info.Ready != 0 || info.Unsettled != 0 {
		t.Errorf("queue %+v, want empty", info)
	}
	if _, ok := dispatcher.TaskFromContext(context.Background()); ok {
		t.Error("TaskFromContext found a task in another context")
	}
}

func TestLimitBoundsCallsAndPrefetch(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var now, most atomic.Int32
	gate, entered := make(chan struct{}), make(chan struct{}, 100)
	r.worker("w", tasks{"n": fn(func() {
		raise(&most, now.Add(1))
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
		t.Errorf("queue %+v, want 4 unsettled and 16 ready", info)
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
		t.Error("NewWorker changed the caller's config")
	}
	for range 5 {
		r.publish("n")
	}
	for range 3 {
		wait(t, entered, "call")
	}
	if info := r.inspect("jobs"); info.Unsettled != 3 {
		t.Errorf("%d unsettled, want 3", info.Unsettled)
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
			t.Errorf("GetWorkerByName: %v, %v", same, err)
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

// D12: gofort/dispatcher started a second consume loop and lost the first.
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
	eventually(t, "all 100 tasks have run", func() bool { return ran.Load() == 100 })
	if n := r.inspect("jobs").Consumers; n != 1 {
		t.Errorf("%d consumers, want 1", n)
	}
}

// A server has channels for a limited number of workers. Start of one worker too many returns an error that says so.
func TestWorkersBeyondTheChannelsAreRefused(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	r.serve(r.ownQueue, func(c *dispatcher.ServerConfig) { c.AMQPConnectionString += "?channel_max=8" }) // half of them are reserved
	ran := make(chan string, 10)
	var last *dispatcher.Worker
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: name, Queue: r.name}, tasks{"f": fn(func() { ran <- name })})
		if err != nil {
			t.Fatal(err)
		}
		if name == "e" {
			says(t, "Start", w.Start(r.server), "4 of 8 channels", "another server", "channel_max")
			break
		}
		if err := w.Start(r.server); err != nil {
			t.Fatal(err)
		}
		last = w
	}
	h := r.server.Health(t.Context())
	if h.Channels == "" || h.Workers[0].Ready < 0 || !h.OK() {
		t.Errorf("health: OK %t, channels %q, %+v", h.OK(), h.Channels, h.Workers[0])
	}
	r.publish("f")
	wait(t, ran, "call")
	last.Close()
	if h := r.server.Health(t.Context()); h.Channels != "" {
		t.Errorf("Health still reports the channels after a worker has ended: %s", h.Channels)
	}
}
