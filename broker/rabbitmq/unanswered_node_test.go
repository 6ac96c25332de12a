package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// suspend stops a queue from answering until resume is called.
func (n *node) suspend(queue, kind string) (resume func()) {
	pid := fmt.Sprintf("amqqueue:get_pid(element(2, rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<%q>>))))", queue)
	if kind == "quorum" {
		pid = "element(1, " + pid + ")"
	}
	n.run("eval", "sys:suspend("+pid+").")
	return sync.OnceFunc(func() { n.run("eval", "sys:resume("+pid+").") })
}

// RabbitMQ closes the channel over a message of 300,000 bytes if the limit is 100,000.
func testTooLarge(t *testing.T, n *node) {
	most := func(bytes int) { // RabbitMQ 4 keeps the limit as a persistent term
		n.run("eval", fmt.Sprintf("application:set_env(rabbit, max_message_size, %d), persistent_term:put(max_message_size, %[1]d).", bytes))
	}
	most(100_000)
	defer most(16 << 20)
	s := open(t, n.broker(t))
	q := uniqueName()
	if err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: q}}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Delete(testContext(t), q) })
	fill(t, s, q, 1)

	const count, large = 200, 100
	errs := make([]error, count)
	var all sync.WaitGroup
	start := make(chan struct{})
	for i := range count {
		all.Go(func() {
			m := broker.Message{RoutingKey: q, ID: fmt.Sprint(i), Body: make([]byte, 1000)}
			if i == large {
				m.Body = make([]byte, 300_000)
			}
			<-start
			errs[i] = outcomes(t, s, m)[0]
		})
	}
	close(start)
	all.Wait()
	confirmed := 0
	for i, err := range errs {
		switch {
		case i == large && errors.Is(err, broker.ErrTooLarge) && errors.Is(err, broker.ErrRejected) && strings.Contains(err.Error(), "100000"):
		case i == large:
			t.Errorf("too large: %v", err)
		case err == nil:
			confirmed++
		default:
			t.Errorf("message %d: %v", i, err)
		}
	}
	if info, err := s.Inspect(testContext(t), q); err != nil || info.Ready != confirmed+1 {
		t.Errorf("in the queue: %+v, %v", info, err)
	}
	// From here on the limit is known, and large messages do not affect others.
	msgs := make([]broker.Message, count)
	for i := range msgs {
		msgs[i] = broker.Message{RoutingKey: q, ID: fmt.Sprint(i), Body: make([]byte, 100_000+i%2)}
	}
	for i, err := range outcomes(t, s, msgs...) {
		if i%2 == 0 && err != nil || i%2 == 1 && !errors.Is(err, broker.ErrTooLarge) {
			t.Errorf("%d bytes: %v", 100_000+i%2, err)
		}
	}
	if s.Err() != nil {
		t.Errorf("session: %v", s.Err())
	}
}

// Messages for a queue that does not answer use up neither the window nor the channel nor the connection.
func testUnanswered(t *testing.T, n *node) {
	for _, kind := range []string{"classic", "quorum"} {
		t.Run(kind, func(t *testing.T) {
			s := open(t, n.broker(t))
			silent, good := uniqueName(), uniqueName()
			spec := broker.QueueSpec{Name: silent}
			if kind == "quorum" {
				spec.Type = kind
			}
			if err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{spec, {Name: good}}}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = s.Delete(testContext(t), silent), s.Delete(testContext(t), good) })
			resume := n.suspend(silent, kind)
			defer resume()

			const count = 3000
			var told atomic.Int64
			all := make(chan struct{})
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			msgs := make([]broker.Message, count)
			for i := range msgs {
				msgs[i] = broker.Message{RoutingKey: silent, ID: fmt.Sprint(i)}
			}
			s.Publish(ctx, msgs, func(int, error) {
				if told.Add(1) == count {
					close(all)
				}
			})
			// The first of these messages has the ID of a message in flight, but need not wait for it.
			retry := broker.Message{RoutingKey: good, ID: "0"}
			for i := range 20 {
				if err := outcomes(t, s, retry, broker.Message{RoutingKey: good, ID: fmt.Sprint("good", i)}); err[0] != nil || err[1] != nil {
					t.Errorf("to a healthy queue: %v", err)
				}
			}
			if u := s.Status().Unanswered; u < 1 || u > 1000 {
				t.Errorf("%d unanswered", u)
			}
			resume()
			wait(t, "every outcome", all)
			bound := testContext(t)
			for tick := time.Tick(5 * time.Millisecond); s.Status().Unanswered != 0; <-tick {
				if bound.Err() != nil || s.Err() != nil {
					t.Fatalf("%d unanswered, %v", s.Status().Unanswered, s.Err())
				}
			}
			if got := told.Load(); got != count {
				t.Errorf("%d outcomes of %d messages", got, count)
			}
		})
	}
}

// A queue of dead letters that does not answer blocks neither another queue nor Close.
func testUnansweredDeadLetters(t *testing.T, n *node) {
	s, err := n.broker(t).Open(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	ill, well := uniqueName(), uniqueName()
	var queues []broker.QueueSpec
	for _, q := range []string{ill, well} {
		queues = append(queues, broker.QueueSpec{Name: q}, broker.QueueSpec{Name: q + broker.DeadSuffix})
	}
	if err := s.Declare(testContext(t), broker.Topology{Queues: queues}); err != nil {
		t.Fatal(err)
	}
	const count = 100 // more than the places reserved for settling
	fill(t, s, ill, count)
	fill(t, s, well, 10)
	sick, fit := consume(t, s, ill, count), consume(t, s, well, 10)
	resume := n.suspend(ill+broker.DeadSuffix, "classic")
	defer resume()
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	var all sync.WaitGroup
	for range count {
		d := receive(t, sick)
		all.Go(func() {
			if err := d.DeadLetter(ctx, d.Forward()); !errors.Is(err, broker.ErrUnconfirmed) && !errors.Is(err, broker.ErrNotSent) {
				t.Errorf("to a queue that does not answer: %v", err)
			}
		})
	}
	for range 10 {
		d := receive(t, fit)
		if err := d.DeadLetter(testContext(t), d.Forward()); err != nil {
			t.Errorf("to a healthy queue: %v", err)
		}
	}
	if ctx.Err() != nil {
		t.Error("the healthy queue took as long as the one that does not answer")
	}
	cancel()
	all.Wait()
	if s.Status().Unanswered == 0 {
		t.Error("nothing is unanswered")
	}
	if err := s.Close(testContext(t)); err != nil {
		t.Errorf("close: %v", err)
	}
	wait(t, "the session's end", s.Done())
}

// Delayed messages for many targets begin at one level, which is a quorum queue. If it does not answer, they use up
// neither the channel nor the connection.
func testUnansweredLevel(t *testing.T, n *node) {
	s := open(t, n.broker(t))
	good, at := workQueue(t, s), time.Now().Add(time.Hour)
	published(t, s, broker.Message{RoutingKey: good, ID: "makes the levels", NotBefore: at})
	resume := n.suspend("dispatcher.delay.v2.21", "quorum")
	defer resume()
	ctx, cancel := context.WithCancel(testContext(t))
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	for range 3 {
		msgs := make([]broker.Message, 150)
		q := workQueue(t, s)
		for i := range msgs {
			msgs[i] = broker.Message{RoutingKey: q, ID: fmt.Sprint(i), NotBefore: at}
		}
		all.Go(func() { s.Publish(ctx, msgs, func(int, error) {}) })
	}
	for i := range 20 {
		within, stop := context.WithTimeout(context.Background(), patience/2)
		outcome := make(chan error, 1)
		s.Publish(within, []broker.Message{{RoutingKey: good, ID: fmt.Sprint(i)}}, func(_ int, err error) { outcome <- err })
		select {
		case err := <-outcome:
			if err != nil {
				t.Errorf("to a healthy queue: %v", err)
			}
		case <-within.Done():
			t.Fatal("a healthy queue got nothing")
		}
		stop()
	}
	if ctx.Err() != nil {
		t.Error("the healthy queue took as long as the one that does not answer")
	}
}
