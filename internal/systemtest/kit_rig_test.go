package systemtest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// rig is a server on its own embedded broker. The test can break the broker and inspect it directly.
type rig struct {
	t       *testing.T
	chaos   *brokertest.Chaos
	log     *recorder
	server  *dispatcher.Server
	givenUp chan struct{}
}

// newRig starts a server with exchange and default key "jobs". edit may change its configuration first.
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

// balanced checks that a closed server counted every delivery once. A call that never ends has no verdict.
func balanced(t *testing.T, server *dispatcher.Server) {
	t.Helper()
	running := 0
	for _, w := range server.Health(t.Context()).Workers {
		running += w.Running
	}
	s := server.Stats()
	sum := s.Succeeded + s.Discarded + s.Retried + s.Postponed + s.Suspected + s.DeadLettered + s.Released + s.Lost
	if sum > s.Received || sum+int64(running) < s.Received {
		t.Errorf("%d verdicts on %d deliveries, with %d calls running: %+v", sum, s.Received, running, s)
	}
}

// worker starts a worker on the queue "jobs", bound to the key "jobs".
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

func (r *rig) publish(name string, args ...any) *dispatcher.Task {
	r.t.Helper()
	task := dispatcher.NewTask(name, args...)
	if err := r.server.Publish(task); err != nil {
		r.t.Fatal(err)
	}
	return task
}

// session opens a session in addition to the server's.
func (r *rig) session() broker.Session {
	r.t.Helper()
	s, err := r.chaos.Open(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.Close(context.Background()) })
	return s
}

// publishRaw puts a foreign publisher's message into a queue.
func (r *rig) publishRaw(queue string, m broker.Message) {
	r.t.Helper()
	m.RoutingKey = queue
	done := make(chan error, 1)
	r.session().Publish(r.t.Context(), []broker.Message{m}, func(_ int, err error) { done <- err })
	if err := wait(r.t, done, "confirmation"); err != nil {
		r.t.Fatal(err)
	}
}

// dead waits for n dead letters of the queue "jobs", acks them, and returns them.
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

// inspect returns how many messages a queue has.
func (r *rig) inspect(queue string) broker.QueueInfo {
	r.t.Helper()
	info, err := r.session().Inspect(r.t.Context(), queue)
	if err != nil {
		r.t.Fatal(err)
	}
	return info
}

// withQueue makes the server declare the queue "jobs", without a worker.
func withQueue(c *dispatcher.ServerConfig) {
	c.InitQueues = []dispatcher.Queue{{Name: "jobs", BindingKeys: []string{"jobs"}}}
}

// outstanding returns the number of messages in a queue, ready or unsettled. It returns 1 if the broker cannot be asked
// now.
func (r *rig) outstanding(queue string) int {
	s, err := r.chaos.Open(r.t.Context())
	if err != nil {
		return 1
	}
	defer func() { _ = s.Close(r.t.Context()) }()
	info, err := s.Inspect(r.t.Context(), queue)
	if err != nil {
		return 1
	}
	return info.Ready + info.Unsettled
}

// down takes the connection away, or restores it and waits for a healthy server.
func down(r *rig, on bool) {
	if !on {
		r.chaos.FailOpen(nil)
		eventuallyOK(r.t, r)
		return
	}
	r.chaos.FailOpen(errors.New("down"))
	r.chaos.Kill()
	synctest.Wait()
}

// up lets the server reconnect.
func up(r *rig) { r.chaos.FailOpen(nil) }

// ids takes all messages of a queue and returns their IDs, in order.
func (r *rig) ids(queue string) []string {
	r.t.Helper()
	ds, err := r.session().TryGet(r.t.Context(), queue, 1_000_000)
	if err != nil {
		r.t.Fatal(err)
	}
	var ids []string
	for _, d := range ds {
		if err := d.Ack(); err != nil {
			r.t.Fatal(err)
		}
		ids = append(ids, d.ID)
	}
	return ids
}

// eventuallyOK waits for a healthy server, in fake or real time.
func eventuallyOK(t *testing.T, r *rig) {
	t.Helper()
	eventually(t, "the server is healthy", func() bool { return r.server.Health(t.Context()).OK() })
}

func eventuallyConnected(t *testing.T, r *rig) {
	t.Helper()
	if err := r.server.PublishContext(t.Context(), dispatcher.NewTask("probe")); !errors.Is(err, dispatcher.ErrUnroutable) {
		t.Fatalf("probe: %v", err)
	}
}
