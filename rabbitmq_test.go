package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
)

// The defects of gofort/dispatcher, D1 to D16, each with a test on a real RabbitMQ that would fail if we had it. D13 is in
// tls_test.go.

func TestRabbitMQ_D1AnUnknownArgumentTypeIsADeadLetter(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	got := make(chan string, 1)
	r.worker(tasks{"f": fn(func(s string) { got <- s })}, limit(1))
	r.sendBody(`{"uuid":"u-1","name":"f","args":[{"type":"complex128","value":"x"}]}`)
	r.dead("bad_arguments")
	r.publish("f", "after")
	if s := wait(t, got, "task"); s != "after" {
		t.Errorf("got %q", s)
	}
	if s := r.server.Stats(); s.Received != 2 {
		t.Errorf("stats %+v: one message was handed out again", s)
	}
}

func TestRabbitMQ_D2APanicInATimedTaskIsADeadLetter(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	got := make(chan string, 1)
	r.worker(tasks{
		"timed":   {TimeoutSeconds: 30, Function: func(string) { panic("boom") }},
		"untimed": fn(func(string) { panic("boom") }),
		"f":       {TimeoutSeconds: 30, Function: func(s string) { got <- s }},
	}, limit(1))
	for _, name := range []string{"timed", "untimed"} {
		r.publish(name, "x")
		d := r.dead("failed")
		if text, _ := d.Headers["x-dispatcher-error"].(string); !strings.Contains(text, "boom") {
			t.Errorf("%s: error %q", name, text)
		}
	}
	// The wrong number and the wrong types of arguments panicked there too.
	r.sendBody(`{"uuid":"u-1","name":"f","args":[]}`)
	r.dead("bad_arguments")
	r.sendBody(`{"uuid":"u-2","name":"f","args":[{"type":"int","value":1}]}`)
	r.dead("bad_arguments")
	r.publish("f", "after")
	if s := wait(t, got, "task"); s != "after" {
		t.Errorf("got %q", s)
	}
	if s := r.server.Stats(); s.DeadLettered != 4 {
		t.Errorf("stats %+v", s)
	}
}

func TestRabbitMQ_D3AnUnreachableBrokerIsAnErrorAfterTheRetries(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	r.proxy.Refuse(true)
	within(t, patience, "NewServer", func() {
		server, givenUp, err := dispatcher.NewServer(r.config(func(c *dispatcher.ServerConfig) {
			c.ReconnectionRetriesForever, c.ReconnectionRetries, c.ReconnectionIntervalSeconds = false, 2, 0
		}))
		if server != nil || givenUp != nil || err == nil {
			t.Errorf("got %v, %v, %v", server, givenUp, err)
		}
		says(t, "NewServer", err, "2 retries", r.proxy.Addr())
	})
	if n := r.proxy.Accepted(); n != 3 {
		t.Errorf("dialled %d times, want 3", n)
	}
}

func TestRabbitMQ_D3TheChannelFiresWhenALaterOutageUsesUpTheRetries(t *testing.T) {
	t.Parallel()
	r := newRabbit(t, func(c *dispatcher.ServerConfig) {
		c.ReconnectionRetriesForever, c.ReconnectionRetries, c.ReconnectionIntervalSeconds = false, 1, 1
	})
	began, gate := make(chan int, 1), make(chan struct{})
	r.worker(tasks{"slow": fn(func() { began <- 1; <-gate })})
	r.publish("slow")
	wait(t, began, "task")
	r.proxy.Refuse(true)
	r.proxy.Cut()
	eventually(t, "given up", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateGivenUp })
	select {
	case <-r.givenUp:
		t.Error("fired while a task was running")
	default:
	}
	close(gate)
	if _, open := <-r.givenUp; open {
		t.Error("a value instead of the close")
	}
	if err := r.server.Publish(dispatcher.NewTask("slow")); !errors.Is(err, dispatcher.ErrServerClosed) {
		t.Errorf("publish afterwards: %v", err)
	}
	within(t, 20*time.Second, "Close", r.server.Close)
}

// bound is more than Close may take: ShutdownTimeout, a second in these tests, and about fifteen of clean ends.
const bound = 25 * time.Second

func TestRabbitMQ_D4ClosingAlwaysReturns(t *testing.T) {
	t.Parallel()
	amqpURL(t)
	second := func(c *dispatcher.ServerConfig) { c.ShutdownTimeout = time.Second }
	for name, break_ := range map[string]func(r *rabbit, w *dispatcher.Worker){
		"connected":    func(*rabbit, *dispatcher.Worker) {},
		"disconnected": func(r *rabbit, _ *dispatcher.Worker) { r.cut() },
		"at a cut":     func(r *rabbit, _ *dispatcher.Worker) { r.proxy.Refuse(true); r.proxy.Cut() },
		"stalled":      func(r *rabbit, _ *dispatcher.Worker) { r.proxy.Stall(true) },
		"in mid-reconnect": func(r *rabbit, _ *dispatcher.Worker) {
			r.cut()
			r.proxy.Stall(true) // the next dial is accepted, and its handshake has no answer
			r.proxy.Refuse(false)
			n := r.proxy.Accepted()
			eventually(r.t, "dialled", func() bool { return r.proxy.Accepted() > n })
		},
		"queue deleted": func(r *rabbit, _ *dispatcher.Worker) {
			if _, err := r.raw().QueueDelete(r.name, false, false, false); err != nil {
				r.t.Error(err)
			}
		},
		"failed start": func(r *rabbit, w *dispatcher.Worker) {
			r.cut()
			w.Close()
			if err := w.Start(r.server); !errors.Is(err, dispatcher.ErrWorkerDisconnected) {
				r.t.Errorf("start: %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRabbit(t, second)
			w := r.worker(tasks{"f": fn(func() {})})
			never := r.newWorker(nil, func(c *dispatcher.WorkerConfig) { c.Name = "never started" })
			break_(r, w)
			within(t, bound, "Worker.Close before Start", never.Close)
			within(t, bound, "Worker.Close", w.Close)
			within(t, bound, "Worker.Close again", w.Close)
			within(t, bound, "Close", r.server.Close)
			within(t, bound, "Close again", r.server.Close)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			within(t, bound, "Shutdown after it", func() { _ = r.server.Shutdown(ctx) })
			within(t, bound, "Worker.Shutdown after it", func() { _ = w.Shutdown(ctx) })
			if s := r.server.Health(t.Context()).State; s != dispatcher.StateClosed {
				t.Errorf("state %s", s)
			}
			select {
			case <-r.givenUp:
				t.Error("the channel was closed by Close")
			default:
			}
		})
	}
	t.Run("running task on a stalled link", func(t *testing.T) {
		t.Parallel()
		r := newRabbit(t, second)
		began, gate := make(chan int, 1), make(chan struct{})
		defer close(gate)
		r.worker(tasks{"deaf": fn(func() { began <- 1; <-gate })})
		r.publish("deaf")
		wait(t, began, "task")
		r.proxy.Stall(true)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var side sync.WaitGroup
		for range 4 { // side by side, all return
			side.Go(func() {
				within(t, bound, "Shutdown", func() {
					if err := r.server.Shutdown(ctx); err == nil {
						t.Error("no error, though a task was left behind")
					}
				})
			})
		}
		side.Wait()
	})
}

func TestRabbitMQ_D5AnUnknownTaskIsNotRequeued(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	got := make(chan int, 1)
	r.worker(tasks{"known": fn(func() { got <- 1 })}, limit(1), func(c *dispatcher.WorkerConfig) { c.UnknownTaskMaxAge = -1 })
	task := r.publish("unknown", 1)
	if d := r.dead("unknown_task"); d.MessageId != task.UUID || d.Type != "unknown" {
		t.Errorf("dead letter %q of type %q", d.MessageId, d.Type)
	}
	r.publish("known")
	wait(t, got, "task")
	if s := r.server.Stats(); s.Received != 2 {
		t.Errorf("%d deliveries of two messages", s.Received)
	}
}

func TestRabbitMQ_D6AnUnroutableTaskIsAnError(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	r.serve(r.ownQueue)
	for name, publish := range map[string]func(*dispatcher.Task) error{
		"Publish":        r.server.Publish,
		"PublishContext": func(task *dispatcher.Task) error { return r.server.PublishContext(t.Context(), task) },
		"PublishBatch": func(task *dispatcher.Task) error {
			return errors.Join(r.server.PublishBatch(t.Context(), []*dispatcher.Task{task})...)
		},
	} {
		task := dispatcher.NewTask("f")
		task.RoutingKey = "nobody.listens"
		err := publish(task)
		outcome(t, name, err, dispatcher.ErrUnroutable)
		says(t, name, err, r.name, "nobody.listens")
		r.publish("f")
	}
	if ready, _ := r.count(r.name); ready != 3 {
		t.Errorf("%d messages in the queue, want 3", ready)
	}
	if s := r.server.Stats(); s.Published != 3 || s.Rejected != 3 || s.Reconnects != 0 {
		t.Errorf("stats %+v", s)
	}
}

// The refusals of a full queue: none is taken for a confirmation. Nor is it taken as proof that no queue has the task.
func TestRabbitMQ_D6ANackedPublishIsNotConfirmed(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	ch := r.raw()
	if _, err := ch.QueueDeclare(r.name, true, false, false, false, amqp.Table{"x-max-length": 1, "x-overflow": "reject-publish"}); err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind(r.name, r.name, r.name, false, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the queue is full", func() bool { return r.server.Publish(dispatcher.NewTask("f")) != nil })
	batch := make([]*dispatcher.Task, 2000)
	for i := range batch {
		batch[i] = dispatcher.NewTask("f", i)
	}
	errs := r.server.PublishBatch(t.Context(), batch)
	nacked := 0
	for _, err := range errs {
		if errors.Is(err, dispatcher.ErrNacked) && errors.Is(err, dispatcher.ErrUnconfirmed) && !errors.Is(err, dispatcher.ErrRejected) {
			nacked++
		}
	}
	if nacked != len(batch) {
		t.Errorf("%d of %d nacked", nacked, len(batch))
	}
}

func TestRabbitMQ_D7ADeletedExchangeIsMadeAgain(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	got := make(chan int, 100)
	r.worker(tasks{"n": fn(func(n int) { got <- n })})
	if err := r.raw().ExchangeDelete(r.name, false, false); err != nil {
		t.Fatal(err)
	}
	err := r.server.Publish(dispatcher.NewTask("n", 0))
	outcome(t, "publish to no exchange", err, dispatcher.ErrUnconfirmed, dispatcher.ErrRejected)
	says(t, "publish to no exchange", err, "404")
	eventually(t, "a task is published again", func() bool { return r.server.Publish(dispatcher.NewTask("n", 7)) == nil })
	if n := wait(t, got, "task"); n != 7 {
		t.Errorf("got %d", n)
	}
	r.healed()
}

func TestRabbitMQ_D7ADeletedQueueIsMadeAgainWithoutAReconnect(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	got := make(chan int, 100)
	r.worker(tasks{"n": fn(func(n int) { got <- n })})
	if _, err := r.raw().QueueDelete(r.name, false, false, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a task is routed again", func() bool { return r.server.Publish(dispatcher.NewTask("n", 7)) == nil })
	if n := wait(t, got, "task"); n != 7 {
		t.Errorf("got %d", n)
	}
	r.healed()
	if s := r.server.Stats(); s.Reconnects != 0 {
		t.Errorf("%d reconnects", s.Reconnects)
	}
}

func TestRabbitMQ_D8TimedOutCallsAreBounded(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	var running, most atomic.Int64
	began, gate := make(chan int, 20), make(chan struct{})
	r.worker(tasks{"deaf": {Timeout: 50 * time.Millisecond, Function: func() {
		n := running.Add(1)
		defer running.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		began <- 1
		<-gate
	}}}, limit(2))
	const count = 10
	for range count {
		r.publish("deaf")
	}
	for range 4 { // two abandoned, two in the slots
		wait(t, began, "call")
	}
	for range 2 {
		r.dead("timeout")
	}
	// The calls in the slots are overdue now too, and keep them.
	eventually(t, "overdue", func() bool { return r.server.Health(t.Context()).Workers[0].Abandoned == 2 })
	if n, s := most.Load(), r.server.Stats(); n > 4 || s.Received > 4 || s.Abandoned != 2 {
		t.Errorf("%d calls at once, stats %+v", n, s)
	}
	close(gate)
	eventually(t, "all are done with", func() bool { s := r.server.Stats(); return s.Succeeded+s.DeadLettered == count })
	if n := most.Load(); n > 4 {
		t.Errorf("%d calls at once", n)
	}
}

func TestRabbitMQ_D9NumbersAreExactOrRefused(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	type numbers struct {
		a, b int64
		c, d uint64
		e    float64
	}
	got := make(chan numbers, 1)
	r.worker(tasks{
		"exact": fn(func(a, b int64, c, d uint64, e float64) { got <- numbers{a, b, c, d, e} }),
		"i8":    fn(func(int8) { t.Error("int8 ran") }),
		"u8":    fn(func(uint8) { t.Error("uint8 ran") }),
		"i":     fn(func(int) { t.Error("int ran") }),
		"i64":   fn(func(int64) { t.Error("int64 ran") }),
		"f32":   fn(func(float32) { t.Error("float32 ran") }),
	})
	want := numbers{math.MinInt64, math.MaxInt64, math.MaxUint64, 1<<53 + 1, math.MaxFloat64}
	r.publish("exact", want.a, want.b, want.c, want.d, want.e)
	if n := wait(t, got, "task"); n != want {
		t.Errorf("got %v, want %v", n, want)
	}
	r.sendBody(`{"uuid":"u","name":"exact","args":[{"type":"int64","value":-9223372036854775808},{"type":"int64","value":9223372036854775807},` +
		`{"type":"uint64","value":18446744073709551615},{"type":"uint64","value":9007199254740993},{"type":"float64","value":1.7976931348623157e308}]}`)
	if n := wait(t, got, "raw task"); n != want {
		t.Errorf("raw: got %v, want %v", n, want)
	}
	for _, bad := range []string{
		`"i8","args":[{"type":"int8","value":300}]`,
		`"u8","args":[{"type":"uint8","value":-1}]`,
		`"i","args":[{"type":"int","value":1.9}]`,
		`"i64","args":[{"type":"int64","value":9223372036854775808}]`,
		`"i8","args":[{"type":"int64","value":300}]`,
		`"f32","args":[{"type":"float32","value":1e300}]`,
		`"i","args":[{"type":"int","value":null}]`,
		`"i","args":[{"type":"int","value":"7"}]`,
	} {
		r.sendBody(`{"uuid":"u","name":` + bad + `}`)
		r.dead("bad_arguments")
	}
}

func TestRabbitMQ_D10EveryPublisherGetsItsOwnOutcome(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	r.serve(r.ownQueue)
	const goroutines, each = 16, 40
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				task := dispatcher.NewTask("f", g, i)
				lost := (g+i)%2 == 1
				if lost {
					task.RoutingKey = fmt.Sprintf("lost.%d.%d", g, i)
				}
				err := r.server.Publish(task)
				switch {
				case lost && (!errors.Is(err, dispatcher.ErrUnroutable) || !strings.Contains(err.Error(), task.RoutingKey)):
					t.Errorf("to %s: %v", task.RoutingKey, err)
				case !lost && err != nil:
					t.Errorf("to the queue: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if ready, _ := r.count(r.name); ready != goroutines*each/2 {
		t.Errorf("%d in the queue, want %d", ready, goroutines*each/2)
	}
}

// Every method at once, beside lost links: what the race detector and a hang would show.
func TestRabbitMQ_D10EverythingAtOnce(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	r.worker(tasks{"n": fn(func(int) {})})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for _, f := range []func(i int){
		func(i int) { _ = r.server.Publish(dispatcher.NewTask("n", i)) },
		func(i int) { _ = r.server.PublishContext(t.Context(), dispatcher.NewTask("n", i)) },
		func(int) { r.server.Health(t.Context()); r.server.Stats() },
		func(int) {
			if w, err := r.server.GetWorkerByName("w"); err != nil {
				t.Error(err)
			} else {
				w.Close()
				_ = w.Start(r.server)
			}
		},
		func(i int) {
			cfg := dispatcher.WorkerConfig{Name: fmt.Sprint("w", i%5), Queue: r.name}
			if w, err := r.server.NewWorker(&cfg, tasks{"n": fn(func(int) {})}); err == nil {
				_ = w.Start(r.server)
			}
		},
	} {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					f(i)
				}
			}
		})
	}
	for range 3 {
		before := r.server.Stats().Reconnects
		r.proxy.Cut()
		eventually(t, "connected again", func() bool { return r.server.Stats().Reconnects > before })
	}
	close(stop)
	within(t, 2*patience, "the end of all", wg.Wait)
	within(t, 2*patience, "Close", r.server.Close)
}

func TestRabbitMQ_TheLogNamesTheNodeWithoutCredentials(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	r.proxy.Cut()
	eventually(t, "connected again", func() bool { return r.server.Stats().Reconnects == 1 })
	log := r.log.String()
	host := "node=amqp://" + r.proxy.Addr() + "/"
	if !strings.Contains(log, "info: connected "+host) || !strings.Contains(log, "info: connected again "+host) {
		t.Errorf("the log does not name %s:\n%s", host, log)
	}
	if password, _ := r.url.User.Password(); strings.Contains(log, ":"+password+"@") {
		t.Errorf("the log has the password:\n%s", log)
	}
}

func TestRabbitMQ_D11ADrainingTaskCanPublishAndTheRestIsGivenBack(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	began, gate := make(chan int, 10), make(chan struct{})
	w := r.worker(tasks{
		"parent": fn(func() error { began <- 1; <-gate; return r.server.Publish(dispatcher.NewTask("child")) }),
	}, limit(1))
	r.publish("parent")
	wait(t, began, "task")
	for range 5 {
		r.publish("parent")
	}
	closed := make(chan struct{})
	go func() { defer close(closed); r.server.Close() }()
	// What was fetched ahead is back, and nothing more is handed out, while the first still runs.
	conn, ch := r.dial()
	defer conn.Close()
	eventually(t, "given back", func() bool {
		q, err := ch.QueueDeclarePassive(r.name, true, false, false, false, nil)
		return err == nil && q.Messages == 5 && q.Consumers == 0
	})
	close(gate)
	wait(t, closed, "end of Close")
	if len(began) != 0 {
		t.Error("a task was begun during Close")
	}
	r.queueIs(r.name, 6) // the five and the child
	if s := r.server.Stats(); s.Succeeded != 1 || s.DeadLettered != 0 || s.Published != 7 {
		t.Errorf("stats %+v", s)
	}
	if err := w.Start(r.server); !errors.Is(err, dispatcher.ErrServerClosed) {
		t.Errorf("start afterwards: %v", err)
	}
}

func TestRabbitMQ_D11ATaskThatOverrunsTheDrainIsDeliveredAgain(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	began, gate := make(chan int, 1), make(chan struct{})
	defer close(gate)
	r.worker(tasks{"deaf": fn(func() { began <- 1; <-gate })})
	r.publish("deaf")
	wait(t, began, "task")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	within(t, bound, "Shutdown", func() {
		if err := r.server.Shutdown(ctx); !errors.Is(err, dispatcher.ErrTasksRunning) {
			t.Errorf("got %v", err)
		}
	})
	if d := r.take(r.name, 1)[0]; !d.Redelivered {
		t.Error("not marked as redelivered")
	}
}

func TestRabbitMQ_D12AWorkerHasOneConsumerHoweverOftenItIsStarted(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	got := make(chan int, 10)
	w := r.worker(tasks{"n": fn(func(n int) { got <- n })})
	if err := w.Start(r.server); !errors.Is(err, dispatcher.ErrWorkerStarted) {
		t.Errorf("second start: %v", err)
	}
	if _, consumers := r.count(r.name); consumers != 1 {
		t.Errorf("%d consumers", consumers)
	}
	for n := range 3 {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(w.Close)
		}
		within(t, patience, "four Closes", wg.Wait)
		if _, consumers := r.count(r.name); consumers != 0 {
			t.Errorf("%d consumers after Close", consumers)
		}
		var started atomic.Int64
		for range 4 {
			wg.Go(func() {
				switch err := w.Start(r.server); {
				case err == nil:
					started.Add(1)
				case !errors.Is(err, dispatcher.ErrWorkerStarted):
					t.Errorf("start: %v", err)
				}
			})
		}
		within(t, patience, "four Starts", wg.Wait)
		if _, consumers := r.count(r.name); consumers != 1 || started.Load() != 1 {
			t.Errorf("%d started, %d consumers", started.Load(), consumers)
		}
		r.publish("n", n)
		if got := wait(t, got, "task"); got != n {
			t.Errorf("got %d, want %d", got, n)
		}
	}
}
