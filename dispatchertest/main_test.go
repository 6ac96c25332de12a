package dispatchertest_test

import (
	"fmt"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/dispatchertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeTB is a test that records its failure and goes on.
type fakeTB struct {
	testing.TB
	failure string
	log     strings.Builder
	cleanup []func()
}

func (f *fakeTB) Helper()                         {}
func (f *fakeTB) Fatalf(text string, args ...any) { f.failure += fmt.Sprintf(text, args...) }
func (f *fakeTB) Log(args ...any)                 { fmt.Fprintln(&f.log, args...) }
func (f *fakeTB) Cleanup(fn func())               { f.cleanup = append(f.cleanup, fn) }

// end ends the fake test by running its cleanups.
func (f *fakeTB) end() {
	for len(f.cleanup) > 0 {
		last := len(f.cleanup) - 1
		fn := f.cleanup[last]
		f.cleanup = f.cleanup[:last]
		fn()
	}
}

// wantFailure runs an assertion that must fail, and compares the text of the failure.
func wantFailure(t *testing.T, want string, assert func(tb testing.TB)) {
	t.Helper()
	fake := &fakeTB{TB: t}
	assert(fake)
	if fake.failure != want {
		t.Errorf("it failed with\n%s\nwant\n%s", fake.failure, want)
	}
}

// tasks shortens the tables of the tests.
type tasks = map[string]dispatcher.TaskConfig

// start starts a worker on the queue "test", bound to the key "test".
func start(t *testing.T, server *dispatcher.Server, set tasks, edit ...func(*dispatcher.WorkerConfig)) *dispatcher.Worker {
	t.Helper()
	cfg := dispatcher.WorkerConfig{Name: "worker", Queue: "test", BindingKeys: []string{"test"}}
	for _, f := range edit {
		f(&cfg)
	}
	w, err := server.NewWorker(&cfg, set)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(server); err != nil {
		t.Fatal(err)
	}
	return w
}

func publish(t *testing.T, server *dispatcher.Server, all ...*dispatcher.Task) {
	t.Helper()
	for _, task := range all {
		if err := server.Publish(task); err != nil {
			t.Fatal(err)
		}
	}
}

func idle(t *testing.T, kit *dispatchertest.Kit) dispatchertest.Result {
	t.Helper()
	r, err := kit.RunUntilIdle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// names lists the task and the number of each attempt.
func names(attempts []dispatcher.FinishEvent) string {
	var out []string
	for _, e := range attempts {
		out = append(out, fmt.Sprintf("%s/%d", e.Task.Name, e.Task.Attempt))
	}
	return strings.Join(out, " ")
}
