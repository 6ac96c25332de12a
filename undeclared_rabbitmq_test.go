package dispatcher_test

import (
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
)

// Others have declared a queue of InitQueues, the dead letters of a worker and the exchange with other properties. After the next cut the
// server works with what is there.
func TestRedeclaredThingsDoNotStopTheServer(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	init := r.name + ".init"
	r.serve(r.ownQueue, func(c *dispatcher.ServerConfig) {
		c.InitQueues = append(c.InitQueues, dispatcher.Queue{Name: init, BindingKeys: []string{init}})
	})
	ran := make(chan int, 10)
	r.worker(tasks{"f": fn(func(n int) { ran <- n })})
	ch := r.raw()
	for _, q := range []string{init, r.name + ".dead"} {
		if _, err := ch.QueueDelete(q, false, false, false); err != nil {
			t.Fatal(err)
		}
		if _, err := ch.QueueDeclare(q, true, false, false, false, amqp.Table{"x-max-length": int32(7)}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.sweep(q) })
	}
	if err := ch.ExchangeDelete(r.name, false, false); err != nil {
		t.Fatal(err)
	}
	if err := ch.ExchangeDeclare(r.name, "fanout", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	r.cut()
	r.proxy.Refuse(false)
	eventually(t, "connected and consuming", func() bool {
		h := r.server.Health(t.Context())
		return h.State == dispatcher.StateConnected && h.Workers[0].Consuming
	})
	r.publish("f", 1) // a fanout exchange takes it too
	if n := wait(t, ran, "call"); n != 1 {
		t.Errorf("ran %d", n)
	}
	want := map[string]bool{init: true, r.name + ".dead": true, r.name: true}
	eventually(t, "all three shown", func() bool { return len(r.server.Health(t.Context()).Undeclared) == 3 })
	for _, u := range r.server.Health(t.Context()).Undeclared {
		if !want[u.Name] || !strings.Contains(u.Problem, "406") {
			t.Errorf("%+v", u)
		}
	}
	for _, q := range []string{init, r.name + ".dead"} {
		if _, err := ch.QueueDelete(q, false, false, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := ch.ExchangeDelete(r.name, false, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all declared again", func() bool { return r.server.Health(t.Context()).Undeclared == nil })
}
