package systemtest_test

import (
	"bytes"
	"context"
	"errors"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// These tests are about lost, silent and slow links, and the log lines about them.

// The default logger writes to standard error, so the test runs it in a process of its own.
func TestRabbitMQ_D14TheDefaultLoggerFormats(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	if os.Getenv("DISPATCHER_TEST_D14") != "" {
		r.serve(func(c *dispatcher.ServerConfig) { c.Logger = nil })
		r.worker(nil)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestRabbitMQ_D14TheDefaultLoggerFormats$")
	cmd.Env = append(os.Environ(), "DISPATCHER_TEST_D14=1")
	var out bytes.Buffer
	cmd.Stderr = &out
	if stdout, err := cmd.Output(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout, out.String())
	}
	text := out.String()
	if !strings.Contains(text, "worker receives tasks") || !strings.Contains(text, "source=dispatcher") {
		t.Errorf("standard error: %s", text)
	}
	if strings.Contains(text, "%!") || strings.Contains(text, "[w") {
		t.Errorf("unformatted text: %s", text)
	}
}

func TestRabbitMQ_D16TopologyIsDeclaredAgainAfterAReconnect(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	second := r.name + ".second"
	r.sweep(second, second+".dead")
	r.serve(r.ownQueue)
	got := make(chan int, 1)
	r.worker(tasks{"n": fn(func(n int) { got <- n })}, func(c *dispatcher.WorkerConfig) { c.Queue, c.BindingKeys = second, []string{"second"} })
	r.cut()
	ch := r.raw()
	for _, q := range []string{r.name, second, second + ".dead"} {
		if _, err := ch.QueueDelete(q, false, false, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := ch.ExchangeDelete(r.name, false, false); err != nil {
		t.Fatal(err)
	}
	r.back()
	r.publish("kept")
	if ready, _ := r.count(r.name); ready != 1 {
		t.Errorf("%d messages in the queue of InitQueues", ready)
	}
	task := dispatcher.NewTask("n", 7)
	task.RoutingKey = "second"
	if err := r.server.Publish(task); err != nil {
		t.Fatal(err)
	}
	if n := wait(t, got, "task"); n != 7 {
		t.Errorf("got %d", n)
	}
	if ready, _ := r.count(second + ".dead"); ready != 0 {
		t.Errorf("%d dead letters", ready)
	}
}

func TestRabbitMQ_D16WithoutAnIntervalReconnectingIsNotAHotLoop(t *testing.T) {
	t.Parallel()
	r := newRabbit(t, func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds = 0 })
	r.cut()
	n, began := r.proxy.Accepted(), time.Now()
	eventually(t, "the server has dialled four more times", func() bool { return r.proxy.Accepted() >= n+4 })
	if took := time.Since(began); took < 50*time.Millisecond { // four random pauses, up to 0.5, 1, 2 and 4 s
		t.Errorf("four dials took only %v", took)
	}
	if h := r.server.Health(t.Context()); h.LastError == nil {
		t.Error("Health has no LastError")
	}
	r.back()
}

func TestRabbitMQ_D16PublishingIsBoundedOnAStalledLink(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	r.serve(r.ownQueue, func(c *dispatcher.ServerConfig) { c.PublishTimeout = 500 * time.Millisecond })
	r.proxy.Stall(true)
	task := dispatcher.NewTask("f")
	within(t, 10*time.Second, "Publish", func() {
		err := r.server.Publish(task)
		outcome(t, "Publish", err, dispatcher.ErrUnconfirmed, dispatcher.ErrNotSent)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want it to wrap the timeout", err)
		}
	})
	within(t, 10*time.Second, "PublishBatch", func() {
		batch := make([]*dispatcher.Task, 3000) // three windows
		for i := range batch {
			batch[i] = dispatcher.NewTask("f", strings.Repeat("x", 1000))
		}
		for _, err := range r.server.PublishBatch(t.Context(), batch) {
			outcome(t, "PublishBatch", err, dispatcher.ErrUnconfirmed, dispatcher.ErrNotSent)
		}
	})
	within(t, 10*time.Second, "Health", func() {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		r.server.Health(ctx)
	})
	r.proxy.Stall(false)
	eventually(t, "a publish succeeds again", func() bool { return r.server.Publish(dispatcher.NewTask("f")) == nil })
}

// Missing heartbeats reveal a link that has fallen silent for good. The link is then replaced.
func TestRabbitMQ_D16ADeadLinkIsFoundAndReplaced(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	got := make(chan int, 10)
	r.worker(tasks{"n": fn(func(n int) { got <- n })})
	r.proxy.Stall(true)
	eventuallyWithin(t, 2*patience, "the dead link is noticed", func() bool { return r.server.Health(cancelled()).State == dispatcher.StateConnecting })
	r.proxy.Cut() // the old link never comes back
	r.proxy.Stall(false)
	if err := r.server.PublishContext(t.Context(), dispatcher.NewTask("n", 7)); err != nil {
		t.Fatal(err)
	}
	if n := wait(t, got, "task"); n != 7 {
		t.Errorf("got %d", n)
	}
}

// cancelled returns a context that has ended, so that Health does not ask the broker.
func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// A link is cut in the middle of a frame. Every confirmed task is in the queue once, and no task that was reported as
// not sent is.
func TestRabbitMQ_D16ACutInTheMiddleOfPublishingIsToldHonestly(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := mathrand.New(mathrand.NewPCG(seed, 0))
	r.serve(r.ownQueue)
	var mu sync.Mutex
	outcomes := map[string]error{}
	for round := range 8 {
		most := 150_000 // bytes; the tasks of a round have more than 80,000
		if round == 0 {
			most = 60_000 // certainly in the middle
		}
		r.proxy.CutAfter(1 + random.IntN(most))
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() {
				task := dispatcher.NewTask("f", strings.Repeat("x", 2000))
				err := r.server.Publish(task)
				if err != nil {
					outcome(t, "publish", err, dispatcher.ErrNotSent, dispatcher.ErrUnconfirmed)
				}
				mu.Lock()
				defer mu.Unlock()
				outcomes[task.UUID] = err
			})
		}
		within(t, patience, "publishes", wg.Wait)
		r.healed()
	}
	r.proxy.CutAfter(-1)
	found := map[string]int{}
	conn, ch := r.dial()
	defer conn.Close()
	for {
		d, ok, err := ch.Get(r.name, true)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		found[d.MessageId]++
	}
	confirmed, notSent, unknown := 0, 0, 0
	for uuid, err := range outcomes {
		n := found[uuid]
		switch {
		case err == nil && n != 1, errors.Is(err, dispatcher.ErrNotSent) && n != 0, n > 1:
			t.Errorf("%d messages in the queue of a task whose outcome was: %v", n, err)
		case err == nil:
			confirmed++
		case errors.Is(err, dispatcher.ErrNotSent):
			notSent++
		default:
			unknown++
		}
	}
	t.Logf("%d confirmed, %d not sent, %d unconfirmed", confirmed, notSent, unknown)
	if confirmed == 0 || notSent+unknown == 0 {
		t.Error("no cut was in the middle of the publishes")
	}
}

// An ack from before a cut must not settle the next delivery of the same message, which has the same delivery tag on
// its own channel.
func TestRabbitMQ_ALateSettleAfterACutTouchesNothing(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	type run struct{ release chan struct{} }
	runs := make(chan run)
	f := tasks{"f": fn(func() { me := run{make(chan struct{})}; runs <- me; <-me.release })}
	r.worker(f, limit(2))
	r.publish("f")
	first := wait(t, runs, "first run")
	r.cut()
	// Another process takes the task. This one would hold it until the first run ends.
	other, _, err := dispatcher.NewServer(r.config(func(c *dispatcher.ServerConfig) { c.AMQPConnectionString = r.url.String() }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	w, err := other.NewWorker(&dispatcher.WorkerConfig{Name: "other", Queue: r.name}, f)
	if err != nil {
		t.Fatal(err)
	}
	start(t, w, other)
	second := wait(t, runs, "second run")
	r.back()
	close(first.release)
	eventually(t, "the late settle was dropped", func() bool { return r.server.Stats().Lost == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Shutdown(ctx); !errors.Is(err, dispatcher.ErrTasksRunning) { // the second run is left behind, unsettled
		t.Errorf("Shutdown: %v", err)
	}
	third := wait(t, runs, "third run") // if the first run had settled it, there would be no third run
	close(second.release)
	close(third.release)
	eventually(t, "the task is settled once", func() bool { return r.server.Stats().Succeeded == 1 })
	if s := other.Stats(); s.Succeeded != 0 {
		t.Errorf("stats of the other server: %+v", s)
	}
	within(t, patience, "Close", r.server.Close)
	if ready, _ := r.count(r.name); ready != 0 {
		t.Errorf("%d messages left", ready)
	}
	if ready, _ := r.count(r.name + ".dead"); ready != 0 {
		t.Errorf("%d dead letters", ready)
	}
}

// A node that is out of memory stops only publishers. Not parallel, and on its own node, because an alarm affects every
// client.
func TestRabbitMQ_D16AMemoryAlarmBoundsPublishersAndLetsWorkersWork(t *testing.T) {
	n := newNode(t)
	r := placeOn(t, n.url)
	r.serve(func(c *dispatcher.ServerConfig) { c.PublishTimeout = 500 * time.Millisecond })
	began, gate := make(chan int, 20), make(chan struct{})
	r.worker(tasks{"n": fn(func(n int) { began <- n; <-gate })}, limit(1))
	for i := range 5 {
		r.publish("n", i)
	}
	wait(t, began, "first task")
	n.alarm(true)
	t.Cleanup(func() { n.alarm(false) })
	// The broker reports the alarm to a connection only after that connection has published. The first publish is
	// written but not confirmed.
	within(t, 10*time.Second, "the first Publish", func() {
		outcome(t, "first publish", r.server.Publish(dispatcher.NewTask("n", 5)), dispatcher.ErrUnconfirmed)
	})
	within(t, 10*time.Second, "Publish", func() {
		err := r.server.Publish(dispatcher.NewTask("n", 6))
		outcome(t, "publish", err, dispatcher.ErrNotSent)
		says(t, "publish", err, "memory")
	})
	within(t, 10*time.Second, "the first delayed Publish, which must declare the delay levels", func() {
		task := dispatcher.NewTask("n", 6)
		task.Delay = time.Millisecond
		outcome(t, "delayed publish", r.server.Publish(task), dispatcher.ErrNotSent)
	})
	close(gate) // the worker still works and acks
	eventually(t, "five tasks are acked", func() bool { return r.server.Stats().Succeeded == 5 })
	within(t, bound, "another server's Close", func() {
		server, _, err := dispatcher.NewServer(r.config())
		if err != nil {
			t.Error(err)
			return
		}
		server.Close()
	})
	n.alarm(false)
	eventually(t, "the unconfirmed task has run after all", func() bool { return r.server.Stats().Succeeded == 6 })
	delayed := dispatcher.NewTask("n", 8)
	delayed.Delay = time.Second
	if err := r.server.PublishContext(t.Context(), dispatcher.NewTask("n", 7)); err != nil {
		t.Error(err)
	}
	// Declaring the queues of the delay levels may take longer than PublishTimeout. It goes on in the background, so a
	// later publish finds them.
	eventually(t, "the delayed task is confirmed", func() bool {
		err := r.server.PublishContext(t.Context(), delayed)
		if err != nil {
			outcome(t, "delayed publish", err, dispatcher.ErrNotSent)
		}
		return err == nil
	})
	eventually(t, "all tasks have run", func() bool { return r.server.Stats().Succeeded == 8 })
	if s := r.server.Stats(); s.Reconnects != 0 {
		t.Errorf("%d reconnects", s.Reconnects)
	}
}

func TestRabbitMQ_TheLogNamesTheNodeWithoutCredentials(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	r.proxy.Cut()
	eventually(t, "the server is connected again", func() bool { return r.server.Stats().Reconnects == 1 })
	log := r.log.String()
	host := "node=amqp://" + r.proxy.Addr() + "/"
	if !strings.Contains(log, "info: connected "+host) || !strings.Contains(log, "info: connected again "+host) {
		t.Errorf("the log does not name %s:\n%s", host, log)
	}
	if password, _ := r.url.User.Password(); strings.Contains(log, ":"+password+"@") {
		t.Errorf("the log has the password:\n%s", log)
	}
}
