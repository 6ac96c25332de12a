package systemtest_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
)

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

// A full queue nacks. A nacked publish is not confirmed. Nor does the nack prove that no queue has the task.
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
		t.Errorf("%d messages in the queue, want %d", ready, goroutines*each/2)
	}
}

// The methods run concurrently while links are lost. The race detector or a hang would reveal a defect.
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
		eventually(t, "the server is connected again", func() bool { return r.server.Stats().Reconnects > before })
	}
	close(stop)
	within(t, 2*patience, "the end of all goroutines", wg.Wait)
	startAgain(t, r.server)
	before := r.server.Stats().Succeeded
	if err := r.server.PublishContext(t.Context(), dispatcher.NewTask("n", 0)); err != nil {
		t.Errorf("publish afterwards: %v", err)
	}
	eventually(t, "a task runs afterwards", func() bool { return r.server.Stats().Succeeded > before })
	within(t, 2*patience, "Close", r.server.Close)
}

func TestRabbitMQ_TheSameUUIDTwiceInFlightEachGetsItsOutcome(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	r.serve(r.ownQueue)
	const rounds = 100
	for i := range rounds {
		uuid := fmt.Sprintf("same-%d", i)
		good, lost := dispatcher.NewTask("f", i), dispatcher.NewTask("f", i)
		good.UUID, lost.UUID, lost.RoutingKey = uuid, uuid, "nobody.listens"
		if i%2 == 0 {
			errs := r.server.PublishBatch(t.Context(), []*dispatcher.Task{good, lost})
			if errs == nil || errs[0] != nil || !errors.Is(errs[1], dispatcher.ErrUnroutable) {
				t.Fatalf("batch: %v", errs)
			}
			continue
		}
		var goodErr, lostErr error
		var wg sync.WaitGroup
		wg.Go(func() { goodErr = r.server.Publish(good) })
		wg.Go(func() { lostErr = r.server.Publish(lost) })
		within(t, patience, "both publishes", wg.Wait)
		if goodErr != nil || !errors.Is(lostErr, dispatcher.ErrUnroutable) {
			t.Fatalf("round %d: routable %v, unroutable %v", i, goodErr, lostErr)
		}
	}
	if ready, _ := r.count(r.name); ready != rounds {
		t.Errorf("%d messages in the queue, want %d", ready, rounds)
	}
}
