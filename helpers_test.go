package dispatcher_test

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/url"
	"os"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/memory"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that must happen. It does not measure speed.
const patience = 30 * time.Second

// tasks shortens the tables of the tests.
type tasks = map[string]dispatcher.TaskConfig

func fn(f any) dispatcher.TaskConfig { return dispatcher.TaskConfig{Function: f} }

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

// eventually polls for a state that nothing signals.
func eventually(t *testing.T, what string, ok func() bool) {
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

// venue is a test's own part of some broker. Its exchange, default key and queue have its name.
type venue struct {
	t      *testing.T
	name   string
	broker broker.Broker           // reached directly, not through the proxy of the servers
	config dispatcher.ServerConfig // for a server of this venue
	kill   func()                  // cuts the links of all servers
}

// everywhere runs a test on the embedded broker and on RabbitMQ. It skips RabbitMQ if DISPATCHER_AMQP_CON is not set.
func everywhere(t *testing.T, f func(v *venue)) {
	for name, open := range map[string]func(*testing.T) *venue{"memory": onMemory, "rabbitmq": onRabbitMQ} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := open(t)
			v.config.Exchange, v.config.DefaultRoutingKey = v.name, v.name
			v.config.ReconnectionRetriesForever, v.config.ReconnectionIntervalSeconds = true, 1
			v.config.Logger = dispatcher.SlogLogger(slog.New(slog.NewTextHandler(t.Output(), nil)))
			f(v)
		})
	}
}

func onMemory(t *testing.T) *venue {
	mem := memory.New()
	return &venue{t: t, name: "jobs", broker: mem, config: dispatcher.ServerConfig{Broker: mem}, kill: func() { mem.KillSessions() }}
}

// onRabbitMQ makes a venue that no other test uses, in this package or another.
func onRabbitMQ(t *testing.T) *venue {
	raw := os.Getenv("DISPATCHER_AMQP_CON")
	if raw == "" {
		t.Skip("needs DISPATCHER_AMQP_CON, the URL of a RabbitMQ")
	}
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal("DISPATCHER_AMQP_CON does not parse")
	}
	direct, err := rabbitmq.New(rabbitmq.Config{URLs: []string{raw}})
	if err != nil {
		t.Fatal(err)
	}
	name := "accept." + rand.Text()[:16]
	t.Cleanup(func() {
		if err := sweep(raw, name); err != nil {
			t.Errorf("sweep: %v", err)
		}
	})
	proxy := brokertest.NewProxy(t, u.Host)
	u.Host = proxy.Addr()
	return &venue{t: t, name: name, broker: direct, config: dispatcher.ServerConfig{AMQPConnectionString: u.String()}, kill: proxy.Cut}
}

// sweep deletes the exchange and the queues of that name.
func sweep(url, name string) error {
	conn, err := amqp.Dial(url)
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	for _, suffix := range []string{"", ".dead", ".suspects"} {
		if _, err := ch.QueueDelete(name+suffix, false, false, false); err != nil {
			return err
		}
	}
	return ch.ExchangeDelete(name, false, false)
}

// server starts another server, which is closed when the test ends.
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

// balanced checks that a closed server has counted every delivery once. A call that never ends has no verdict.
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

// worker starts a worker of s on the venue's queue.
func (v *venue) worker(s *dispatcher.Server, name string, set tasks, edit ...func(*dispatcher.WorkerConfig)) {
	v.t.Helper()
	cfg := dispatcher.WorkerConfig{Name: name, Queue: v.name, BindingKeys: []string{v.name}}
	for _, f := range edit {
		f(&cfg)
	}
	w, err := s.NewWorker(&cfg, set)
	if err != nil {
		v.t.Fatal(err)
	}
	if err := w.Start(s); err != nil {
		v.t.Fatal(err)
	}
}

func (v *venue) publish(s *dispatcher.Server, name string, args ...any) *dispatcher.Task {
	v.t.Helper()
	task := dispatcher.NewTask(name, args...)
	if err := s.Publish(task); err != nil {
		v.t.Fatal(err)
	}
	return task
}

// session opens a session of the broker. On RabbitMQ, kill does not reach it.
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

// empty waits until nothing is left in a queue.
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
