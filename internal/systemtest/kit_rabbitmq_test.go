package systemtest_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
)

// The tests on a real RabbitMQ share a server that reaches the node through a proxy, and raw clients that reach the
// same queues directly.

// amqpURL returns the URL of the node to test with. Without one, it skips the test.
func amqpURL(t testing.TB) *url.URL {
	t.Helper()
	raw := os.Getenv("DISPATCHER_AMQP_CON")
	if raw == "" {
		t.Skip("needs DISPATCHER_AMQP_CON, the URL of a RabbitMQ")
	}
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal("DISPATCHER_AMQP_CON is not a valid URL")
	}
	return u
}

// rabbit is the test's own place on a RabbitMQ. Its exchange, default key and queue have its name.
type rabbit struct {
	t       *testing.T
	url     *url.URL // the node's own, without the proxy
	proxy   *brokertest.Proxy
	name    string
	log     *recorder
	server  *dispatcher.Server
	givenUp chan struct{}
}

// newPlace makes a place without a server.
func newPlace(t *testing.T) *rabbit { return placeOn(t, amqpURL(t)) }

func placeOn(t *testing.T, u *url.URL) *rabbit {
	t.Helper()
	r := &rabbit{t: t, url: u, name: "test." + rand.Text()[:16], log: &recorder{}}
	r.sweep(r.name, r.name+".dead", r.name+".suspects")
	t.Cleanup(func() {
		conn, ch := r.dial()
		defer conn.Close()
		if err := ch.ExchangeDelete(r.name, false, false); err != nil {
			t.Errorf("delete exchange: %v", err)
		}
	})
	r.proxy = brokertest.NewProxy(t, u.Host)
	return r
}

// newRabbit makes a place with a server.
func newRabbit(t *testing.T, edit ...func(*dispatcher.ServerConfig)) *rabbit {
	t.Helper()
	r := newPlace(t)
	r.serve(edit...)
	return r
}

// config returns the configuration of a server that reaches the node through the proxy.
func (r *rabbit) config(edit ...func(*dispatcher.ServerConfig)) *dispatcher.ServerConfig {
	cfg := &dispatcher.ServerConfig{
		AMQPConnectionString: r.through(r.proxy.Addr()), Exchange: r.name, DefaultRoutingKey: r.name,
		ReconnectionRetriesForever: true, ReconnectionIntervalSeconds: 1, Logger: r.log,
	}
	for _, f := range edit {
		f(cfg)
	}
	return cfg
}

// through returns the node's URL with another host and port.
func (r *rabbit) through(host string) string {
	u := *r.url
	u.Host = host
	return u.String()
}

// as returns the URL through the proxy for another user.
func (r *rabbit) as(user, password string) string {
	u := *r.url
	u.Host, u.User = r.proxy.Addr(), url.UserPassword(user, password)
	return u.String()
}

func (r *rabbit) serve(edit ...func(*dispatcher.ServerConfig)) {
	r.t.Helper()
	r.t.Cleanup(func() {
		if r.t.Failed() {
			r.t.Log("log of the server:\n" + r.log.String())
		}
	})
	var err error
	if r.server, r.givenUp, err = dispatcher.NewServer(r.config(edit...)); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.server.Close)
}

// ownQueue makes the server declare and bind the place's queue.
func (r *rabbit) ownQueue(c *dispatcher.ServerConfig) {
	c.InitQueues = []dispatcher.Queue{{Name: r.name, BindingKeys: []string{r.name}}}
}

// worker starts a worker on the place's queue.
func (r *rabbit) worker(set tasks, edit ...func(*dispatcher.WorkerConfig)) *dispatcher.Worker {
	r.t.Helper()
	w := r.newWorker(set, edit...)
	if err := w.Start(r.server); err != nil {
		r.t.Fatal(err)
	}
	return w
}

func (r *rabbit) newWorker(set tasks, edit ...func(*dispatcher.WorkerConfig)) *dispatcher.Worker {
	r.t.Helper()
	cfg := dispatcher.WorkerConfig{Name: "w", Queue: r.name, BindingKeys: []string{r.name}}
	for _, f := range edit {
		f(&cfg)
	}
	w, err := r.server.NewWorker(&cfg, set)
	if err != nil {
		r.t.Fatal(err)
	}
	return w
}

func (r *rabbit) publish(name string, args ...any) *dispatcher.Task {
	r.t.Helper()
	task := dispatcher.NewTask(name, args...)
	if err := r.server.Publish(task); err != nil {
		r.t.Fatal(err)
	}
	return task
}

// dial opens a raw connection without the proxy.
func (r *rabbit) dial() (*amqp.Connection, *amqp.Channel) {
	r.t.Helper()
	conn, err := amqp.Dial(r.url.String())
	if err != nil {
		r.t.Fatal(err)
	}
	ch, err := conn.Channel()
	if err != nil {
		_ = conn.Close()
		r.t.Fatal(err)
	}
	return conn, ch
}

// raw opens a raw channel that ends with the test.
func (r *rabbit) raw() *amqp.Channel {
	r.t.Helper()
	conn, ch := r.dial()
	r.t.Cleanup(func() { _ = conn.Close() })
	return ch
}

// sweep deletes queues when the test ends.
func (r *rabbit) sweep(queues ...string) {
	r.t.Cleanup(func() {
		conn, ch := r.dial()
		defer conn.Close()
		for _, q := range queues {
			if _, err := ch.QueueDelete(q, false, false, false); err != nil {
				r.t.Errorf("delete queue: %v", err)
			}
		}
	})
}

// declare declares the place's exchange and queue as gofort/dispatcher does: direct, durable, no arguments.
func (r *rabbit) declare(ch *amqp.Channel) error {
	if err := ch.ExchangeDeclare(r.name, "direct", true, false, false, false, nil); err != nil {
		return err
	}
	if _, err := ch.QueueDeclare(r.name, true, false, false, false, nil); err != nil {
		return err
	}
	return ch.QueueBind(r.name, r.name, r.name, false, nil)
}

// send publishes a raw message to the place's exchange and waits for its confirmation.
func (r *rabbit) send(p amqp.Publishing) {
	r.t.Helper()
	conn, ch := r.dial()
	defer conn.Close()
	if err := ch.Confirm(false); err != nil {
		r.t.Fatal(err)
	}
	sent, err := ch.PublishWithDeferredConfirmWithContext(r.t.Context(), r.name, r.name, false, false, p)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if ok, err := sent.WaitContext(ctx); err != nil || !ok {
		r.t.Fatalf("raw publish: %t, %v", ok, err)
	}
}

// sendBody publishes a body as gofort/dispatcher does: with a content type, delivery mode 2, and nothing else.
func (r *rabbit) sendBody(body string) {
	r.t.Helper()
	r.send(amqp.Publishing{ContentType: "application/json", DeliveryMode: 2, Body: []byte(body)})
}

// take removes n messages from a queue.
func (r *rabbit) take(queue string, n int) []amqp.Delivery {
	r.t.Helper()
	conn, ch := r.dial()
	defer conn.Close()
	if err := ch.Qos(max(n, 1), 0, false); err != nil {
		r.t.Fatal(err)
	}
	deliveries, err := ch.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []amqp.Delivery
	for range n {
		d := wait(r.t, deliveries, "message in "+queue)
		if err := d.Ack(false); err != nil {
			r.t.Fatal(err)
		}
		out = append(out, d)
	}
	return out
}

// dead takes one dead letter of the place's queue and checks its reason.
func (r *rabbit) dead(reason string) amqp.Delivery {
	r.t.Helper()
	d := r.take(r.name+".dead", 1)[0]
	if got := d.Headers["x-dispatcher-reason"]; got != reason {
		r.t.Errorf("dead letter %s: reason %v, want %s", d.Body, got, reason)
	}
	return d
}

// count returns how many messages of a queue are ready, and how many consumers it has.
func (r *rabbit) count(queue string) (ready, consumers int) {
	r.t.Helper()
	conn, ch := r.dial()
	defer conn.Close()
	q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return q.Messages, q.Consumers
}

// queueIs waits until a queue has exactly that many ready messages.
func (r *rabbit) queueIs(queue string, ready int) {
	r.t.Helper()
	conn, ch := r.dial()
	defer conn.Close()
	eventually(r.t, fmt.Sprintf("%d messages in %s", ready, queue), func() bool {
		q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		return q.Messages == ready
	})
}

// cut breaks the link until back is called, and waits until the server has noticed.
func (r *rabbit) cut() {
	r.t.Helper()
	r.proxy.Refuse(true)
	r.proxy.Cut()
	eventually(r.t, "the server notices the lost link", func() bool {
		return r.server.Health(r.t.Context()).State == dispatcher.StateConnecting
	})
}

// back allows connections again and waits until the server has recovered.
func (r *rabbit) back() {
	r.t.Helper()
	r.proxy.Refuse(false)
	r.healed()
}

// healed waits until the server is connected and its workers consume.
func (r *rabbit) healed() {
	r.t.Helper()
	eventually(r.t, "the server is connected and its workers consume", func() bool { return r.server.Health(r.t.Context()).OK() })
}
