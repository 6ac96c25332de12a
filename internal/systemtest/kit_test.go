package systemtest_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seed-416683c9/dispatcher"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience limits every wait for an event that must happen. It is not a speed limit.
const patience = 30 * time.Second

// tasks shortens the tables of the tests.
type tasks = map[string]dispatcher.TaskConfig

func fn(f any) dispatcher.TaskConfig { return dispatcher.TaskConfig{Function: f} }

// numberedTasks returns n tasks with the arguments 0 to n-1.
func numberedTasks(name string, n int) []*dispatcher.Task {
	batch := make([]*dispatcher.Task, n)
	for i := range batch {
		batch[i] = dispatcher.NewTask(name, i)
	}
	return batch
}

func limit(n int) func(*dispatcher.WorkerConfig) {
	return func(c *dispatcher.WorkerConfig) { c.Limit = n }
}

// wait receives one value, or fails the test.
func wait[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s within %v", what, patience)
		panic("unreachable")
	}
}

// eventually polls for a state that sends no signal.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	eventuallyWithin(t, patience, what, ok)
}

func eventuallyWithin(t *testing.T, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(patience / 10_000)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func policy(p dispatcher.RetryPolicy) *dispatcher.RetryPolicy { return &p }

// fast is a policy that tests can wait for.
func fast(attempts int) *dispatcher.RetryPolicy {
	return policy(dispatcher.RetryPolicy{MaxAttempts: attempts, InitialInterval: 20 * time.Millisecond, Multiplier: 1, Jitter: -1})
}

// within fails the test if f does not return in time.
func within(t *testing.T, d time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	began := time.Now()
	select {
	case <-done:
	case <-time.After(d):
		t.Errorf("%s: not returned after %v", what, d)
		wait(t, done, "return of "+what)
		t.Logf("%s: returned after %v", what, time.Since(began))
	}
}

// outcome checks that err is one of want, and exactly one of the four outcomes.
func outcome(t *testing.T, what string, err error, want ...error) {
	t.Helper()
	n := 0
	for _, o := range []error{dispatcher.ErrNotSent, dispatcher.ErrRejected, dispatcher.ErrUnconfirmed, dispatcher.ErrInOutbox} {
		if errors.Is(err, o) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%s: %v is %d outcomes, want 1", what, err, n)
	}
	for _, w := range want {
		if errors.Is(err, w) {
			return
		}
	}
	t.Errorf("%s: %v, want %v", what, err, want)
}

// says checks that the text of err contains all words, and not the password "hush".
func says(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v\ndoes not contain %q", what, err, w)
		}
	}
	noSecret(t, what, err)
}

// noSecret checks that no form of v shows the password "hush".
func noSecret(t *testing.T, what string, v any) {
	t.Helper()
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if text := fmt.Sprintf(format, v); strings.Contains(text, "hush") {
			t.Errorf("%s: %s shows the password: %s", what, format, text)
		}
	}
}

func confirmed(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// raise notes n if it is the largest so far.
func raise(most *atomic.Int32, n int32) {
	for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
	}
}
