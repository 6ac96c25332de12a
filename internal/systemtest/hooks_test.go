package systemtest_test

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// story records the events that the hooks receive.
type story struct {
	mu    sync.Mutex
	lines []string
}

func (s *story) add(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

func (s *story) has(line string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.lines, line)
}

func (s *story) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

func (s *story) hooks() dispatcher.Hooks {
	return dispatcher.Hooks{
		Started: func(e dispatcher.StartEvent) { s.add("start %s %d", e.Task.Name, e.Task.Attempt) },
		Finished: func(e dispatcher.FinishEvent) {
			s.add("finish %s %d: %s, %v", e.Task.Name, e.Task.Attempt, e.Verdict, e.Err)
			if e.Duration <= 0 || e.Task.UUID == "" || e.Task.Worker != "w" {
				s.add("bad event %+v", e)
			}
		},
		Retried: func(e dispatcher.RetryEvent) {
			s.add("retry %s %d in %v: %v", e.Task.Name, e.Task.Attempt, e.Delay, e.Err)
		},
		DeadLettered:  func(e dispatcher.DeadLetterEvent) { s.add("dead letter %s: %s", e.Task.Name, e.Reason) },
		Disconnected:  func(e dispatcher.ConnectionEvent) { s.add("%s, with a reason: %v", e.State, e.Err != nil) },
		Reconnected:   func(e dispatcher.ConnectionEvent) { s.add("%s, with a reason: %v", e.State, e.Err != nil) },
		WorkerStarted: func(e dispatcher.WorkerEvent) { s.add("worker %s on %s started", e.Name, e.Queue) },
		WorkerStopped: func(e dispatcher.WorkerEvent) { s.add("worker %s on %s stopped", e.Name, e.Queue) },
	}
}

func TestHooksTellTheStory(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		var st story
		s := v.server(func(c *dispatcher.ServerConfig) { c.Hooks, c.Retry = st.hooks(), fast(2) })
		gate := make(chan struct{})
		w := v.worker(s, "w", tasks{
			"fails":   fn(func() error { return errors.New("no") }),
			"discard": fn(func() error { return dispatcher.Discard(errors.New("late")) }),
			"works":   fn(func() {}),
			"stuck":   {Timeout: time.Millisecond, Function: func() { <-gate }},
			"n":       fn(func(int8) {}),
		})
		v.publish(s, "works")
		v.publish(s, "fails")
		v.publish(s, "discard")
		v.publish(s, "stuck")
		v.publish(s, "n", 300)
		want := []string{
			"worker w on " + v.name + " started",
			"start works 1", "finish works 1: done, <nil>",
			"start fails 1", "finish fails 1: retry, no", "retry fails 1 in 20ms: no",
			"start fails 2", "finish fails 2: dead_letter, no", "dead letter fails: failed",
			"start discard 1", "finish discard 1: discard, late",
			"start stuck 1", "finish stuck 1: dead_letter, still running after its timeout; abandoned", "dead letter stuck: timeout",
			"dead letter n: bad_arguments",
		}
		eventually(v.t, "the hooks have received all events", func() bool {
			for _, line := range want {
				if !st.has(line) {
					return false
				}
			}
			return true
		})
		close(gate)
		v.kill()
		eventually(v.t, "the hooks have received the disconnect and the reconnect", func() bool {
			return st.has("connecting, with a reason: true") && st.has("connected, with a reason: false")
		})
		w.Close()
		eventually(v.t, "the hooks have received the worker's end", func() bool { return st.has("worker w on " + v.name + " stopped") })
		if text := st.String(); strings.Contains(text, "bad event") || strings.Count(text, "\n") != len(want)+2 {
			v.t.Errorf("story:\n%s", text)
		}
	})
}

func TestAHookThatPanicsHarmsNobody(t *testing.T) {
	t.Parallel()
	var st story
	boom := func() { panic("hook") }
	r := newRig(t, func(c *dispatcher.ServerConfig) {
		c.Retry = fast(2)
		c.Hooks = dispatcher.Tee(dispatcher.Hooks{
			Published:     func(dispatcher.PublishEvent) { boom() },
			Started:       func(dispatcher.StartEvent) { boom() },
			Finished:      func(dispatcher.FinishEvent) { boom() },
			Retried:       func(dispatcher.RetryEvent) { boom() },
			DeadLettered:  func(dispatcher.DeadLetterEvent) { boom() },
			Disconnected:  func(dispatcher.ConnectionEvent) { boom() },
			Reconnected:   func(dispatcher.ConnectionEvent) { boom() },
			WorkerStarted: func(dispatcher.WorkerEvent) { boom() },
			WorkerStopped: func(dispatcher.WorkerEvent) { boom() },
		}, st.hooks())
	})
	w := r.worker("w", tasks{"fails": fn(func() error { return errors.New("no") })})
	r.publish("fails")
	r.dead(1)
	r.chaos.Kill()
	eventually(t, "the server has reconnected", func() bool { return st.has("connected, with a reason: false") })
	w.Close()
	for _, line := range []string{"worker w on jobs started", "start fails 1", "retry fails 1 in 20ms: no", "dead letter fails: failed", "worker w on jobs stopped"} {
		if !st.has(line) {
			t.Errorf("the other hook did not receive %q:\n%s", line, st.String())
		}
	}
	if !strings.Contains(r.log.String(), "hook panicked") {
		t.Error("the log does not mention the hook's panic")
	}
}

func TestTeeOfNothingIsNothing(t *testing.T) {
	t.Parallel()
	if h := dispatcher.Tee(dispatcher.Hooks{}, dispatcher.Hooks{}); h.Started != nil || h.Published != nil || h.OutboxRefused != nil {
		t.Error("Tee made a hook where there is none, which would cost time")
	}
	var got []int
	dispatcher.Tee(
		dispatcher.Hooks{Started: func(dispatcher.StartEvent) { got = append(got, 1) }},
		dispatcher.Hooks{Finished: func(dispatcher.FinishEvent) { got = append(got, 9) }},
		dispatcher.Hooks{Started: func(dispatcher.StartEvent) { got = append(got, 2) }},
	).Started(dispatcher.StartEvent{})
	if !slices.Equal(got, []int{1, 2}) {
		t.Errorf("called %v", got)
	}
}

// A test's hook may call t.Fatal, which ends the calling goroutine.
func TestAHookThatEndsItsGoroutineHarmsNobody(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		var st story
		s := v.server(func(c *dispatcher.ServerConfig) {
			exit := func() { runtime.Goexit() }
			c.Retry = fast(2)
			c.Hooks = dispatcher.Tee(st.hooks(), dispatcher.Hooks{
				Started: func(e dispatcher.StartEvent) {
					if e.Task.Name == "exits at start" {
						exit()
					}
				},
				Finished:      func(dispatcher.FinishEvent) { exit() },
				Retried:       func(dispatcher.RetryEvent) { exit() },
				DeadLettered:  func(dispatcher.DeadLetterEvent) { exit() },
				Disconnected:  func(dispatcher.ConnectionEvent) { exit() },
				Reconnected:   func(dispatcher.ConnectionEvent) { exit() },
				WorkerStopped: func(dispatcher.WorkerEvent) { exit() },
			})
		})
		ran, gate := make(chan string, 9), make(chan struct{})
		set := tasks{
			"fails":          fn(func() error { return errors.New("no") }),
			"exits at start": {Retry: policy(dispatcher.RetryPolicy{MaxAttempts: 1}), Function: func() {}},
			"n":              fn(func(n int8) { ran <- fmt.Sprint(n) }),
			"stuck":          {Timeout: time.Millisecond, Function: func() { <-gate }},
		}
		w := v.newWorker(s, "w", set, limit(1))
		// These suspects are never called. Each must still let the next one run.
		v.raw(v.name+".suspects", broker.Message{ID: "m1", Body: []byte("malformed")})
		v.raw(v.name+".suspects", broker.Message{ID: "m2", Body: []byte("malformed")})
		v.raw(v.name+".suspects", message("fails", "suspect", nil))
		start(v.t, w, s)
		for range 2 {
			v.dead("malformed")
		}
		if d := v.dead("failed"); d.ID != "suspect" || d.Headers["x-dispatcher-attempt"] != int64(2) {
			v.t.Errorf("dead letter %+v", d.Message)
		}
		v.publish(s, "exits at start")
		v.dead("failed")
		// A task that was never called must not count as running.
		task := dispatcher.NewTask("n", 300)
		task.UUID = "order 7"
		v.publishTask(s, task)
		v.dead("bad_arguments")
		task = dispatcher.NewTask("n", 7)
		task.UUID = "order 7"
		v.publishTask(s, task)
		if got := wait(v.t, ran, "task of the same uuid"); got != "7" {
			v.t.Errorf("ran %s", got)
		}
		v.publish(s, "stuck")
		v.dead("timeout")
		v.kill()
		eventually(v.t, "the server is connected again", func() bool { return st.has("connected, with a reason: false") })
		v.publish(s, "n", 8)
		if got := wait(v.t, ran, "task after the reconnect"); got != "8" {
			v.t.Errorf("ran %s", got)
		}
		close(gate)
		within(v.t, patience, "Close", w.Close)
		if !st.has("worker w on " + v.name + " stopped") {
			v.t.Errorf("hooks:\n%s", st.String())
		}
		start(v.t, w, s)
	})
}

// The outbox's carriers must go on. Otherwise the remaining entries are never sent.
func TestAHookThatEndsItsGoroutineDoesNotStopTheOutbox(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *dispatcher.ServerConfig) {
		c.Outbox = dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})
		c.InitQueues = []dispatcher.Queue{{Name: "jobs", BindingKeys: []string{"jobs"}}}
		c.Hooks.Published = func(e dispatcher.PublishEvent) {
			if !errors.Is(e.Err, dispatcher.ErrInOutbox) {
				runtime.Goexit()
			}
		}
		c.Hooks.OutboxRefused = func(dispatcher.PublishEvent) { runtime.Goexit() }
	})
	r.chaos.FailOpen(errors.New("away"))
	r.chaos.Kill()
	eventually(t, "the server is disconnected", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateConnecting })
	for _, key := range []string{"jobs", "jobs", "nowhere", "jobs"} {
		task := dispatcher.NewTask("n")
		task.RoutingKey = key
		if err := r.server.Publish(task); !errors.Is(err, dispatcher.ErrInOutbox) {
			t.Fatal(err)
		}
	}
	r.chaos.FailOpen(nil)
	eventually(t, "all entries are sent or refused", func() bool { st := r.server.Stats(); return st.Published == 3 && st.OutboxDead == 1 })
	within(t, patience, "Close", r.server.Close)
}

func TestHooksThatExitHarmNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		exit := func() { calls.Add(1); runtime.Goexit() }
		r := newRig(t, withQueue, plainOutbox, script(func(m broker.Message) error {
			if m.ID == "bad" {
				return broker.ErrRejected
			}
			return nil
		}), func(c *dispatcher.ServerConfig) {
			c.Hooks = dispatcher.Hooks{
				Disconnected:  func(dispatcher.ConnectionEvent) { exit() },
				Reconnected:   func(dispatcher.ConnectionEvent) { exit() },
				WorkerStarted: func(dispatcher.WorkerEvent) { exit() },
				WorkerStopped: func(dispatcher.WorkerEvent) { exit() },
				OutboxRefused: func(dispatcher.PublishEvent) { exit() },
				Published: func(e dispatcher.PublishEvent) {
					if !errors.Is(e.Err, dispatcher.ErrInOutbox) { // this event is on the test's own goroutine
						exit()
					}
				},
			}
		})
		for range 2 {
			down(r, true)
			kept(t, "publish", r.server.Publish(named("bad", "jobs")))
			kept(t, "publish", r.server.Publish(named("good", "jobs")))
			up(r)
			drained(t, r)
		}
		if ids := r.ids("jobs"); len(ids) != 2 {
			t.Errorf("sent %v", ids)
		}
		r.worker("w", tasks{"n": fn(func() {})})
		within(t, patience, "Close", r.server.Close)
		if n := calls.Load(); n != 2*(2+2+1)+2 {
			t.Errorf("%d calls of hooks", n)
		}
	})
}
