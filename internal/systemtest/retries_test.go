package systemtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// These tests cover rows of the table in docs/guarantees.md: the fate of a task whose attempt fails, on every broker.
// delays_test.go and foreign_test.go cover other rows.

func TestAFailedTaskIsTriedAgainAndThenKept(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		type run struct {
			info dispatcher.TaskInfo
			at   time.Time
		}
		runs := make(chan run, 10)
		const pause = 60 * time.Millisecond
		v.worker(s, "w", tasks{"fails": {
			Retry: policy(dispatcher.RetryPolicy{MaxAttempts: 3, InitialInterval: pause, Multiplier: 2, Jitter: -1}),
			Function: func(ctx context.Context, n int) error {
				info, _ := dispatcher.TaskFromContext(ctx)
				runs <- run{info, time.Now()}
				if n == 1 {
					panic("no such user")
				}
				return fmt.Errorf("try %d", info.Attempt)
			},
		}})
		for n := range 2 {
			task := dispatcher.NewTask("fails", n)
			task.Headers = map[string]any{"tenant": "blue"}
			v.publishTask(s, task)
			var before time.Time
			for i := range 3 {
				r := wait(v.t, runs, "attempt")
				if r.info.Attempt != i+1 || r.info.UUID != task.UUID || r.info.RoutingKey != v.name || r.info.Queue != v.name || len(r.info.Headers) != 1 || r.info.Headers["tenant"] != "blue" {
					v.t.Errorf("attempt %d: %+v", i+1, r.info)
				}
				if least := pause << i / 2; i > 0 && r.at.Sub(before) < least {
					v.t.Errorf("attempt %d began %v after the previous one, want at least %v", i+1, r.at.Sub(before), least)
				}
				before = r.at
			}
			d := v.dead("failed")
			if d.ID != task.UUID || d.Headers["x-dispatcher-attempt"] != int64(3) || d.Headers["x-dispatcher-routing-key"] != v.name ||
				d.Headers["x-dispatcher-queue"] != v.name || d.Headers["tenant"] != "blue" {
				v.t.Errorf("dead letter %+v", d.Message)
			}
			var log []struct {
				N      int
				At     time.Time
				Ms     int
				Worker string
				Error  string
			}
			if err := json.Unmarshal([]byte(d.Headers["x-dispatcher-log"].(string)), &log); err != nil {
				v.t.Fatal(err)
			}
			for i, l := range log {
				want := fmt.Sprintf("try %d", i+1)
				if n == 1 {
					want = "task panicked: no such user"
				}
				if l.N != i+1 || l.Worker != "w" || l.Error != want || l.At.IsZero() {
					v.t.Errorf("log %+v", l)
				}
			}
			if len(log) != 3 {
				v.t.Errorf("%d attempts in the log, want 3", len(log))
			}
		}
		// A dead letter may be visible before it is counted.
		eventually(v.t, "all verdicts are counted", func() bool { st := s.Stats(); return st.Retried == 4 && st.DeadLettered == 2 && st.Lost == 0 })
		v.empty(v.name)
	})
}

func TestARetriedTaskCanSucceed(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server(func(c *dispatcher.ServerConfig) { c.Retry = fast(3) })
		var n atomic.Int32
		v.worker(s, "w", tasks{"flaky": fn(func() error {
			if n.Add(1) < 3 {
				return errors.New("not yet")
			}
			return nil
		})})
		v.publish(s, "flaky")
		eventually(v.t, "the third attempt succeeded", func() bool { st := s.Stats(); return st.Succeeded == 1 && st.Retried == 2 })
		if st := s.Stats(); st.DeadLettered != 0 || n.Load() != 3 {
			v.t.Errorf("%d runs, stats %+v", n.Load(), st)
		}
	})
}

// A function's wish, such as Permanent or Discard, overrides the policy, however it is wrapped.
func TestTheFunctionHasTheLastWord(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server(func(c *dispatcher.ServerConfig) { c.Retry = fast(3) })
		boom := errors.New("boom")
		results := map[string]error{
			"permanent": dispatcher.Permanent(boom),
			"backoff":   backoff.Permanent(boom),
			"wrapped":   fmt.Errorf("in a hurry: %w", dispatcher.Permanent(boom)),
			"joined":    errors.Join(errors.New("other"), dispatcher.Discard(dispatcher.Permanent(boom))),
		}
		var calls atomic.Int32
		v.worker(s, "w", tasks{
			"fails":   fn(func(how string) error { calls.Add(1); return results[how] }),
			"discard": fn(func() error { calls.Add(1); return fmt.Errorf("late: %w", dispatcher.Discard(boom)) }),
			"nothing": fn(func() error { return errors.Join(dispatcher.Permanent(nil), dispatcher.Discard(nil)) }),
		})
		for how := range results {
			v.publish(s, "fails", how)
			if d := v.dead("permanent"); d.Headers["x-dispatcher-attempt"] != int64(1) {
				v.t.Errorf("%s: attempt %v", how, d.Headers["x-dispatcher-attempt"])
			}
		}
		v.publish(s, "discard")
		v.publish(s, "nothing")
		eventually(v.t, "all verdicts are counted", func() bool { st := s.Stats(); return st.Discarded == 1 && st.Succeeded == 1 && st.DeadLettered == 4 })
		if st := s.Stats(); st.Retried != 0 || calls.Load() != 5 {
			v.t.Errorf("%d calls, stats %+v", calls.Load(), st)
		}
	})
}

func TestRetryAfterSaysWhen(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		const pause = 300 * time.Millisecond
		runs := make(chan time.Time, 10)
		bounded := make(chan int, 10)
		v.worker(s, "w", tasks{
			"polite": fn(func(ctx context.Context) error { // without a policy, only the function decides
				runs <- time.Now()
				if info, _ := dispatcher.TaskFromContext(ctx); info.Attempt == 3 {
					return nil
				}
				return fmt.Errorf("429: %w", dispatcher.RetryAfter(pause, nil))
			}),
			"bounded": {Retry: fast(2), Function: func(ctx context.Context) error {
				info, _ := dispatcher.TaskFromContext(ctx)
				bounded <- info.Attempt
				return dispatcher.RetryAfter(-time.Hour, errors.New("at once"))
			}},
		})
		v.publish(s, "polite")
		before := wait(v.t, runs, "first attempt")
		for range 2 {
			at := wait(v.t, runs, "next attempt")
			if at.Sub(before) < pause {
				v.t.Errorf("the next attempt came after %v, want at least %v", at.Sub(before), pause)
			}
			before = at
		}
		v.publish(s, "bounded")
		if a, b := wait(v.t, bounded, "attempt"), wait(v.t, bounded, "attempt"); a != 1 || b != 2 {
			v.t.Errorf("attempts %d, %d", a, b)
		}
		v.dead("failed")
	})
}

// Attempts that ended with RetryAfter do not lengthen the policy's later pauses. A task that waited for a rate limit
// five times has not failed five times.
func TestRetryAfterDoesNotMakeLaterPausesLonger(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		ran := make(chan int, 10)
		grows := policy(dispatcher.RetryPolicy{MaxAttempts: 10, InitialInterval: 50 * time.Millisecond, Multiplier: 10, Jitter: -1})
		v.worker(s, "w", tasks{"n": {Retry: grows, Function: func(ctx context.Context) error {
			info, _ := dispatcher.TaskFromContext(ctx)
			ran <- info.Attempt
			switch {
			case info.Attempt <= 5:
				return dispatcher.RetryAfter(0, nil)
			case info.Attempt == 6:
				return errors.New("no") // 50 ms, not 50 ms × 10^5
			}
			return nil
		}}})
		v.publish(s, "n")
		for n := 1; n <= 7; n++ {
			if got := wait(v.t, ran, "attempt"); got != n {
				v.t.Errorf("attempt %d, want %d", got, n)
			}
		}
	})
}

func TestATimedOutTaskIsTriedAgainOnlyIfItHasReturned(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server(func(c *dispatcher.ServerConfig) { c.Retry = fast(2) })
		var heeds, ignores atomic.Int32
		gate := make(chan struct{})
		v.t.Cleanup(func() { close(gate) })
		v.worker(s, "w", tasks{
			"heeds": {Timeout: 50 * time.Millisecond, Function: func(ctx context.Context) error {
				heeds.Add(1)
				<-ctx.Done()
				return context.Cause(ctx)
			}},
			"ignores": {Timeout: 50 * time.Millisecond, Function: func() { ignores.Add(1); <-gate }},
			"next":    fn(func() {}),
		}, limit(1))
		v.publish(s, "heeds")
		if d := v.dead("timeout"); d.Headers["x-dispatcher-attempt"] != int64(2) || heeds.Load() != 2 {
			v.t.Errorf("%d calls, headers %v", heeds.Load(), d.Headers)
		}
		v.publish(s, "ignores")
		if d := v.dead("timeout"); d.Headers["x-dispatcher-attempt"] != int64(1) {
			v.t.Errorf("headers %v", d.Headers)
		}
		v.publish(s, "next") // the slot must be free
		eventually(v.t, "the next task has run", func() bool { return s.Stats().Succeeded == 1 })
		if n := s.Health(v.t.Context()).Workers[0].Abandoned; n != 1 || ignores.Load() != 1 {
			v.t.Errorf("%d abandoned, %d calls", n, ignores.Load())
		}
	})
}

func TestARetryThatCannotBeWrittenKeepsItsTaskOpen(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *dispatcher.ServerConfig) { c.Retry = fast(2) })
	var calls atomic.Int32
	r.worker("w", tasks{"fails": fn(func() error { calls.Add(1); return errors.New("no") })}, limit(1))
	r.chaos.FailRetry(errors.New("disk full"))
	r.publish("fails")
	eventually(t, "Health reports the stuck task", func() bool {
		h := r.server.Health(t.Context())
		return h.Workers[0].Stuck == 1 && !h.OK() && strings.HasSuffix(fmt.Sprint(h.Workers[0].LastError), "): disk full")
	})
	if calls.Load() != 1 || r.server.Stats().Released != 0 {
		t.Errorf("%d calls while the retry cannot be written, want 1", calls.Load())
	}
	r.chaos.FailRetry(nil)
	r.dead(1)
	if calls.Load() != 2 {
		t.Errorf("%d calls, want 2", calls.Load())
	}
}

func TestABrokerWithoutDelaysKeepsWhatCannotBeTriedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *dispatcher.ServerConfig) { c.Retry = fast(3) })
	r.worker("w", tasks{"fails": fn(func() error { return errors.New("no") })})
	r.chaos.FailRetry(fmt.Errorf("delays: %w", errors.ErrUnsupported))
	r.publish("fails")
	r.publish("unknown")
	var reasons []string
	for _, d := range r.dead(2) {
		reasons = append(reasons, d.Headers["x-dispatcher-reason"].(string))
	}
	if slices.Sort(reasons); !slices.Equal(reasons, []string{"failed", "unknown_task"}) {
		t.Errorf("reasons %q", reasons)
	}
}

// If a queue is deleted while its worker runs, it is declared again, and a verdict that waits for it is not lost.
func TestAVerdictWaitsForAQueueThatWasDeleted(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		entered, gate := make(chan struct{}), make(chan struct{})
		v.worker(s, "w", tasks{"fails": fn(func() error { entered <- struct{}{}; <-gate; return errors.New("no") })})
		task := v.publish(s, "fails")
		wait(v.t, entered, "call")
		if err := v.session().Delete(v.t.Context(), v.name+".dead"); err != nil {
			v.t.Fatal(err)
		}
		close(gate)
		eventually(v.t, "the dead letter is written", func() bool { return s.Stats().DeadLettered == 1 })
		if d := v.dead("failed"); d.ID != task.UUID {
			v.t.Errorf("got %s", d.ID)
		}
		v.empty(v.name)
	})
}

// Malformed bodies and unsuitable arguments are dead-lettered at once, whatever the policy, because no retry could
// succeed.
func TestWhatCannotBeCalledIsKeptAtOnce(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server(func(c *dispatcher.ServerConfig) { c.Retry, c.MaxBodyBytes = fast(3), 1000 })
		var calls atomic.Int32
		v.worker(s, "w", tasks{"n": fn(func(int8) { calls.Add(1) })})
		for _, c := range []struct{ body, reason string }{
			{"", "malformed"},
			{`{"name":`, "malformed"},
			{`{"uuid":"u","name":"n","args":[{"type":"string","value":"` + strings.Repeat("x", 1000) + `"}]}`, "malformed"},
			{`{"uuid":"u","name":"n","args":[{"type":"int64","value":128}]}`, "bad_arguments"},
			{`{"uuid":"u","name":"n","args":[]}`, "bad_arguments"},
			{`{"uuid":"u","name":"n","args":[{"type":"never heard of","value":1}]}`, "bad_arguments"},
		} {
			v.raw(v.name, broker.Message{ID: "u", Body: []byte(c.body)})
			if d := v.dead(c.reason); d.Headers["x-dispatcher-attempt"] != int64(0) || string(d.Body) != c.body {
				v.t.Errorf("dead letter %+v", d.Message)
			}
		}
		if calls.Load() != 0 || s.Stats().Retried != 0 {
			v.t.Errorf("%d calls", calls.Load())
		}
	})
}
