package dispatcher_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
)

// suspend makes a queue answer nothing until the test ends.
func suspend(t *testing.T, queue string) {
	t.Helper()
	ctl := os.Getenv("DISPATCHER_RABBITMQCTL")
	if ctl == "" || os.Getenv("DISPATCHER_TEST_NODES") != "1" {
		t.Skip("needs DISPATCHER_TEST_NODES=1 and DISPATCHER_RABBITMQCTL, beside DISPATCHER_AMQP_CON, to suspend a queue of that node")
	}
	pid := `{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"` + queue + `">>)), P = amqqueue:get_pid(Q), sys:`
	control(t, ctl, "eval", pid+`suspend(P).`)
	t.Cleanup(func() { control(t, ctl, "eval", pid+`resume(P).`) })
}

// A queue that does not answer, with no task running: Close waits for it once.
func TestCloseWithAQueueThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	r.serve(r.ownQueue, func(c *dispatcher.ServerConfig) { c.ShutdownTimeout = time.Hour })
	r.worker(tasks{"f": fn(func() {})})
	suspend(t, r.name)
	began := time.Now()
	closed := make(chan struct{})
	go func() { defer close(closed); r.server.Close() }()
	wait(t, closed, "end of Close")
	t.Logf("Close took %v", time.Since(began))
}

// The counts of other queues are known nevertheless, however often they are asked for, and the session has channels left.
func TestHealthWithAQueueThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	other := r.name + ".other"
	r.sweep(other, other+".dead", other+".suspects")
	r.serve(r.ownQueue)
	r.worker(tasks{"f": fn(func() {})}) // "w": before the other one
	w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "x", Queue: other}, tasks{"f": fn(func() {})})
	if err != nil {
		t.Fatal(err)
	}
	suspend(t, r.name)
	for range 40 { // more than there are calls at a time
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		r.server.Health(ctx)
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	h := r.server.Health(ctx)
	if a, b := h.Workers[0], h.Workers[1]; a.Ready != -1 || a.Dead != 0 || b.Ready != 0 || b.Dead != 0 {
		t.Errorf("counted %d and %d, %d and %d, want -1 and 0, 0 and 0", a.Ready, a.Dead, b.Ready, b.Dead)
	}
	if err := w.Start(r.server); err != nil {
		t.Errorf("start a worker of another queue: %v", err)
	}
}

// A server has room for so many workers, and says so.
func TestWorkersBeyondTheChannelsAreRefused(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	r.serve(r.ownQueue, func(c *dispatcher.ServerConfig) { c.AMQPConnectionString += "?channel_max=8" }) // half of it is kept
	ran := make(chan string, 10)
	var last *dispatcher.Worker
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: name, Queue: r.name}, tasks{"f": fn(func() { ran <- name })})
		if err != nil {
			t.Fatal(err)
		}
		if name == "e" {
			says(t, "Start", w.Start(r.server), "4 of 8 channels", "another server", "channel_max")
			break
		}
		if err := w.Start(r.server); err != nil {
			t.Fatal(err)
		}
		last = w
	}
	h := r.server.Health(t.Context())
	if h.Channels == "" || h.Workers[0].Ready < 0 || !h.OK() {
		t.Errorf("health: OK %t, channels %q, %+v", h.OK(), h.Channels, h.Workers[0])
	}
	r.publish("f")
	wait(t, ran, "call")
	last.Close()
	if h := r.server.Health(t.Context()); h.Channels != "" {
		t.Errorf("a worker has ended, and still: %s", h.Channels)
	}
}

// With three channels none is kept for suspects. Two workers take those that there are, and the server is not well.
func TestSuspectsWithoutAChannelAreToldByHealth(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	r.serve(r.ownQueue, func(c *dispatcher.ServerConfig) { c.AMQPConnectionString += "?channel_max=3" })
	for _, name := range []string{"a", "b"} {
		w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: name, Queue: r.name}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Start(r.server); err != nil {
			t.Fatal(err)
		}
	}
	if h := r.server.Health(t.Context()); h.Channels == "" || !h.OK() {
		t.Errorf("without suspects: OK %t, channels %q", h.OK(), h.Channels)
	}
	// One is pulled only if there is one.
	if err := r.raw().PublishWithContext(t.Context(), "", r.name+".suspects", false, false, amqp.Publishing{Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	eventuallyWithin(t, 2*patience, "not well", func() bool {
		h := r.server.Health(t.Context())
		return !h.OK() && strings.Contains(h.Workers[0].Suspects+h.Workers[1].Suspects, "the connection has 3 channels")
	})
}
