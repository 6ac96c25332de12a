package systemtest_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/memory"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// venue is the test's own place on some broker. Its exchange, default key and queue have its name.
type venue struct {
	t      *testing.T
	name   string
	log    *recorder
	config dispatcher.ServerConfig // the configuration of its servers
	broker broker.Broker           // direct, without what the servers go through
	kill   func()                  // cuts the links of all servers
	sweep  func(name string)       // deletes the exchange of that name, its queue, and the queue's .dead and .suspects queues when the test ends
}

// everywhere runs a test on the embedded broker and on RabbitMQ. Without DISPATCHER_AMQP_CON, it skips the latter.
func everywhere(t *testing.T, f func(v *venue)) {
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		f(memoryVenue(t))
	})
	t.Run("rabbitmq", func(t *testing.T) {
		t.Parallel()
		f(rabbitVenue(t))
	})
}

// everyQueue is everywhere, with both types of queues of RabbitMQ.
func everyQueue(t *testing.T, f func(v *venue)) {
	everywhere(t, f)
	t.Run("quorum", func(t *testing.T) {
		t.Parallel()
		v := rabbitVenue(t)
		v.config.QueueType = "quorum"
		f(v)
	})
}

// memoryVenue returns a venue on the embedded broker itself, which counts losses exactly.
func memoryVenue(t *testing.T) *venue {
	mem := memory.New()
	v := &venue{t: t, name: "jobs", log: &recorder{}, broker: mem, kill: func() { mem.KillSessions() }, sweep: func(string) {}}
	v.config = dispatcher.ServerConfig{Broker: mem}
	return v.ready()
}

func rabbitVenue(t *testing.T) *venue {
	u := amqpURL(t)
	direct, err := rabbitmq.New(rabbitmq.Config{URLs: []string{u.String()}})
	if err != nil {
		t.Fatal(err)
	}
	v := &venue{t: t, name: "test." + rand.Text()[:16], log: &recorder{}, broker: direct}
	v.sweep = func(name string) {
		t.Cleanup(func() {
			r := &rabbit{t: t, url: u}
			conn, ch := r.dial()
			defer conn.Close()
			for _, suffix := range []string{"", ".dead", ".suspects"} {
				if _, err := ch.QueueDelete(name+suffix, false, false, false); err != nil {
					t.Errorf("delete queue: %v", err)
				}
			}
			if err := ch.ExchangeDelete(name, false, false); err != nil {
				t.Errorf("delete exchange: %v", err)
			}
		})
	}
	v.sweep(v.name)
	proxy := brokertest.NewProxy(t, u.Host)
	through := *u
	through.Host = proxy.Addr()
	v.config = dispatcher.ServerConfig{AMQPConnectionString: through.String()}
	v.kill = proxy.Cut
	return v.ready()
}

func (v *venue) ready() *venue {
	v.config.Exchange, v.config.DefaultRoutingKey, v.config.Logger = v.name, v.name, v.log
	v.config.ReconnectionRetriesForever, v.config.ReconnectionIntervalSeconds = true, 1
	v.t.Cleanup(func() {
		if v.t.Failed() {
			v.t.Log("log of the servers:\n" + v.log.String())
		}
	})
	return v
}

// server starts another server and closes it when the test ends.
func (v *venue) server(edit ...func(*dispatcher.ServerConfig)) *dispatcher.Server {
	v.t.Helper()
	cfg := v.config
	for _, f := range edit {
		f(&cfg)
	}
	s, _, err := dispatcher.NewServer(&cfg)
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { s.Close(); balanced(v.t, s) })
	return s
}

// worker starts a worker of s on the venue's queue.
func (v *venue) worker(s *dispatcher.Server, name string, set tasks, edit ...func(*dispatcher.WorkerConfig)) *dispatcher.Worker {
	v.t.Helper()
	w := v.newWorker(s, name, set, edit...)
	if err := w.Start(s); err != nil {
		v.t.Fatal(err)
	}
	return w
}

func (v *venue) newWorker(s *dispatcher.Server, name string, set tasks, edit ...func(*dispatcher.WorkerConfig)) *dispatcher.Worker {
	v.t.Helper()
	cfg := dispatcher.WorkerConfig{Name: name, Queue: v.name, BindingKeys: []string{v.name}}
	for _, f := range edit {
		f(&cfg)
	}
	w, err := s.NewWorker(&cfg, set)
	if err != nil {
		v.t.Fatal(err)
	}
	return w
}

func (v *venue) publish(s *dispatcher.Server, name string, args ...any) *dispatcher.Task {
	v.t.Helper()
	return v.publishTask(s, dispatcher.NewTask(name, args...))
}

func (v *venue) publishTask(s *dispatcher.Server, task *dispatcher.Task) *dispatcher.Task {
	v.t.Helper()
	if err := s.Publish(task); err != nil {
		v.t.Fatal(err)
	}
	return task
}

// session opens a session directly on the broker. On RabbitMQ, kill does not reach it.
func (v *venue) session() broker.Session {
	v.t.Helper()
	s, err := v.broker.Open(v.t.Context())
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { v.close(s) })
	return s
}

func (v *venue) close(s broker.Session) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_ = s.Close(ctx)
}

// raw puts a foreign publisher's message into a queue.
func (v *venue) raw(queue string, m broker.Message) {
	v.t.Helper()
	m.RoutingKey = queue
	done := make(chan error, 1)
	v.session().Publish(v.t.Context(), []broker.Message{m}, func(_ int, err error) { done <- err })
	if err := wait(v.t, done, "confirmation"); err != nil {
		v.t.Fatal(err)
	}
}

// take removes n messages from a queue and returns them.
func (v *venue) take(queue string, n int) []broker.Delivery {
	v.t.Helper()
	s := v.session()
	c, err := s.Consume(v.t.Context(), broker.ConsumeOptions{Queue: queue, Prefetch: max(n, 1)})
	if err != nil {
		v.t.Fatal(err)
	}
	out := make([]broker.Delivery, n)
	for i := range out {
		out[i] = wait(v.t, c.Deliveries(), "message in "+queue)
		if err := out[i].Ack(); err != nil {
			v.t.Fatal(err)
		}
	}
	v.close(s)
	return out
}

// dead takes one dead letter and checks its reason.
func (v *venue) dead(reason string) broker.Delivery {
	v.t.Helper()
	d := v.take(v.name+".dead", 1)[0]
	if got := d.Headers["x-dispatcher-reason"]; got != reason {
		v.t.Errorf("dead letter %s: reason %v, want %s", d.Body, got, reason)
	}
	return d
}

// lose takes one message from a queue and ends its session without settling it, as a crashed worker would.
func (v *venue) lose(queue string) {
	v.t.Helper()
	s := v.session()
	c, err := s.Consume(v.t.Context(), broker.ConsumeOptions{Queue: queue, Prefetch: 1})
	if err != nil {
		v.t.Fatal(err)
	}
	wait(v.t, c.Deliveries(), "message in "+queue)
	v.close(s)
}

// empty waits until a queue has no ready message.
func (v *venue) empty(queue string) {
	v.t.Helper()
	s := v.session()
	eventually(v.t, queue+" is empty", func() bool {
		info, err := s.Inspect(v.t.Context(), queue)
		if err != nil {
			v.t.Fatal(err)
		}
		return info.Ready == 0
	})
}

// publishMany publishes n tasks in batches.
func publishMany(v *venue, s *dispatcher.Server, n int, task func(int) *dispatcher.Task) {
	v.t.Helper()
	const size = 500
	for from := 0; from < n; from += size {
		batch := make([]*dispatcher.Task, min(size, n-from))
		for i := range batch {
			batch[i] = task(from + i)
		}
		if errs := s.PublishBatch(v.t.Context(), batch); errs != nil {
			v.t.Fatal(errors.Join(errs...))
		}
	}
}

func message(name, uuid string, headers map[string]any) broker.Message {
	return broker.Message{ID: uuid, Body: fmt.Appendf(nil, `{"uuid":%q,"name":%q,"args":null}`, uuid, name), Headers: headers}
}

func start(t *testing.T, w *dispatcher.Worker, s *dispatcher.Server) {
	t.Helper()
	if err := w.Start(s); err != nil {
		t.Fatal(err)
	}
}
