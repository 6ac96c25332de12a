package dispatcher_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that must happen. It is no measure of speed.
const patience = 30 * time.Second

// tasks shortens the tables of the tests.
type tasks = map[string]dispatcher.TaskConfig

func fn(f any) dispatcher.TaskConfig { return dispatcher.TaskConfig{Function: f} }

// rig is a server on an embedded broker of its own, with the means to break it and to look behind it.
type rig struct {
	t       *testing.T
	chaos   *brokertest.Chaos
	log     *recorder
	server  *dispatcher.Server
	givenUp chan struct{}
}

// newRig starts a server with exchange and default key "jobs"; edit changes its configuration first.
func newRig(t *testing.T, edit ...func(*dispatcher.ServerConfig)) *rig {
	t.Helper()
	r := &rig{t: t, log: &recorder{}}
	mem := memory.New()
	r.chaos = brokertest.NewChaos(mem, func() { mem.KillSessions() })
	cfg := dispatcher.ServerConfig{
		Broker: r.chaos, Exchange: "jobs", DefaultRoutingKey: "jobs",
		ReconnectionRetriesForever: true, ReconnectionIntervalSeconds: 1, Logger: r.log,
	}
	for _, f := range edit {
		f(&cfg)
	}
	var err error
	if r.server, r.givenUp, err = dispatcher.NewServer(&cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.server.Close()
		balanced(t, r.server)
		if t.Failed() {
			t.Log("log of the server:\n" + r.log.String())
		}
	})
	return r
}

// balanced checks, of a server that is closed, that every delivery is counted once. A call that never ends has no verdict.
func balanced(t *testing.T, server *dispatcher.Server) {
	t.Helper()
	running := 0
	for _, w := range server.Health(t.Context()).Workers {
		running += w.Running
	}
	s := server.Stats()
	sum := s.Succeeded + s.Discarded + s.Retried + s.Postponed + s.Suspected + s.DeadLettered + s.Released + s.Lost
	if sum > s.Received || sum+int64(running) < s.Received {
		t.Errorf("%d verdicts on %d deliveries, and %d calls go on: %+v", sum, s.Received, running, s)
	}
}

// worker starts a worker of that name on queue "jobs", bound to the key "jobs".
func (r *rig) worker(name string, set tasks, edit ...func(*dispatcher.WorkerConfig)) *dispatcher.Worker {
	r.t.Helper()
	cfg := dispatcher.WorkerConfig{Name: name, Queue: "jobs", BindingKeys: []string{"jobs"}}
	for _, f := range edit {
		f(&cfg)
	}
	w, err := r.server.NewWorker(&cfg, set)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := w.Start(r.server); err != nil {
		r.t.Fatal(err)
	}
	return w
}

func limit(n int) func(*dispatcher.WorkerConfig) {
	return func(c *dispatcher.WorkerConfig) { c.Limit = n }
}

func (r *rig) publish(name string, args ...any) *dispatcher.Task {
	r.t.Helper()
	task := dispatcher.NewTask(name, args...)
	if err := r.server.Publish(task); err != nil {
		r.t.Fatal(err)
	}
	return task
}

// session opens one beside the server's.
func (r *rig) session() broker.Session {
	r.t.Helper()
	s, err := r.chaos.Open(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.Close(context.Background()) })
	return s
}

// publishRaw puts a message of a foreign publisher on queue.
func (r *rig) publishRaw(queue string, m broker.Message) {
	r.t.Helper()
	m.RoutingKey = queue
	done := make(chan error, 1)
	r.session().Publish(r.t.Context(), []broker.Message{m}, func(_ int, err error) { done <- err })
	if err := wait(r.t, done, "confirmation"); err != nil {
		r.t.Fatal(err)
	}
}

// dead waits for n dead letters of the queue "jobs", settles them, and returns them.
func (r *rig) dead(n int) []broker.Delivery {
	r.t.Helper()
	c, err := r.session().Consume(r.t.Context(), broker.ConsumeOptions{Queue: "jobs.dead", Prefetch: max(n, 1)})
	if err != nil {
		r.t.Fatal(err)
	}
	var out []broker.Delivery
	for range n {
		d := wait(r.t, c.Deliveries(), "dead letter")
		if err := d.Ack(); err != nil {
			r.t.Fatal(err)
		}
		out = append(out, d)
	}
	if err := c.Close(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// inspect counts the messages of a queue.
func (r *rig) inspect(queue string) broker.QueueInfo {
	r.t.Helper()
	info, err := r.session().Inspect(r.t.Context(), queue)
	if err != nil {
		r.t.Fatal(err)
	}
	return info
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

// eventually polls for a state that nothing signals.
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

// recorder is a Log that keeps the lines.
type recorder struct {
	mu    sync.Mutex
	lines []string
}

func (r *recorder) add(level, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, level+": "+text)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.lines, "\n")
}

func (r *recorder) Info(args ...interface{})             { r.add("info", fmt.Sprint(args...)) }
func (r *recorder) Infof(f string, args ...interface{})  { r.add("info", fmt.Sprintf(f, args...)) }
func (r *recorder) Debug(args ...interface{})            { r.add("debug", fmt.Sprint(args...)) }
func (r *recorder) Debugf(f string, args ...interface{}) { r.add("debug", fmt.Sprintf(f, args...)) }
func (r *recorder) Warnf(f string, args ...interface{})  { r.add("warn", fmt.Sprintf(f, args...)) }
func (r *recorder) Error(args ...interface{})            { r.add("error", fmt.Sprint(args...)) }
func (r *recorder) Errorf(f string, args ...interface{}) { r.add("error", fmt.Sprintf(f, args...)) }
