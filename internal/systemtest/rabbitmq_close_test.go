package systemtest_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
)

// bound is more than Close may take: ShutdownTimeout, a second in these tests, plus about fifteen seconds for a clean
// end.
const bound = 25 * time.Second

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
	eventually(t, "the server gives up the connection", func() bool { return r.server.Health(t.Context()).State == dispatcher.StateGivenUp })
	select {
	case <-r.givenUp:
		t.Error("the channel closed while a task was running")
	default:
	}
	close(gate)
	if _, open := <-r.givenUp; open {
		t.Error("the channel sent a value instead of closing")
	}
	if err := r.server.Publish(dispatcher.NewTask("slow")); !errors.Is(err, dispatcher.ErrServerClosed) {
		t.Errorf("Publish after the connection was given up: %v", err)
	}
	within(t, 20*time.Second, "Close", r.server.Close)
}

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
			r.proxy.Stall(true) // the next dial is accepted, but its handshake gets no answer
			r.proxy.Refuse(false)
			n := r.proxy.Accepted()
			eventually(r.t, "the server dials again", func() bool { return r.proxy.Accepted() > n })
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
				r.t.Errorf("Start: %v", err)
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
			within(t, bound, "Shutdown after Close", func() { _ = r.server.Shutdown(ctx) })
			within(t, bound, "Worker.Shutdown after Close", func() { _ = w.Shutdown(ctx) })
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
		for range 4 { // concurrent calls must all return
			side.Go(func() {
				within(t, bound, "Shutdown", func() {
					if err := r.server.Shutdown(ctx); err == nil {
						t.Error("no error, although a task was left running")
					}
				})
			})
		}
		side.Wait()
	})
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
	// While the first task still runs, the prefetched tasks are back in the queue and no more tasks are delivered.
	conn, ch := r.dial()
	defer conn.Close()
	eventually(t, "the prefetched tasks are released", func() bool {
		q, err := ch.QueueDeclarePassive(r.name, true, false, false, false, nil)
		return err == nil && q.Messages == 5 && q.Consumers == 0
	})
	close(gate)
	wait(t, closed, "end of Close")
	if len(began) != 0 {
		t.Error("a task started during Close")
	}
	r.queueIs(r.name, 6) // the five parents and the child
	if s := r.server.Stats(); s.Succeeded != 1 || s.DeadLettered != 0 || s.Published != 7 {
		t.Errorf("stats %+v", s)
	}
	if err := w.Start(r.server); !errors.Is(err, dispatcher.ErrServerClosed) {
		t.Errorf("Start after Close: %v", err)
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
		t.Error("the message is not marked as redelivered")
	}
}

// goleak checks the goroutines in TestMain. This test checks that no connection is left.
func TestRabbitMQ_D15NothingIsLeftWhenNewServerFailsLateNorAfterClose(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	if _, err := r.raw().QueueDeclare(r.name, true, false, false, false, amqp.Table{"x-max-length": 5}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		server, givenUp, err := dispatcher.NewServer(r.config(r.ownQueue))
		if server != nil || givenUp != nil {
			t.Error("NewServer returned a server together with an error")
		}
		says(t, "NewServer", err, r.name, "406", "delete it or use the same properties")
		if !errors.Is(err, dispatcher.ErrRejected) {
			t.Errorf("%v, want ErrRejected", err)
		}
	}
	eventually(t, "no connection is left", func() bool { return r.proxy.Connections() == 0 })
	r.serve()
	r.server.Close()
	eventually(t, "no connection is left after Close", func() bool { return r.proxy.Connections() == 0 })
}
