package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// When the broker owes too many answers, a channel that owes only answers that nobody waits for is given up. That
// happens when the channel is replaced, or when one more caller stops waiting. done still runs for each message.
func TestAnswersThatNobodyWaitsForAreBounded(t *testing.T) {
	t.Parallel()
	const most = 20
	s := rabbitmq.WithMaxUnanswered(open(t, through(t, amqpURL(t), amqpURL(t).Host)), most)
	silent, good := workQueue(t, s), workQueue(t, s)
	suspend(t, silent)

	var told atomic.Int64
	var resumed atomic.Bool
	t.Cleanup(func() { resumed.Store(true) })
	// abandon publishes n messages whose IDs begin with prefix, and waits for none of them.
	abandon := func(prefix string, n int) {
		ctx, cancel := context.WithCancel(testContext(t))
		defer cancel()
		msgs := make([]broker.Message, n)
		for i := range msgs {
			msgs[i] = broker.Message{RoutingKey: silent, ID: fmt.Sprint(prefix, i)}
		}
		s.Publish(ctx, msgs, func(_ int, err error) {
			told.Add(1)
			if !errors.Is(err, broker.ErrUnconfirmed) && !resumed.Load() {
				t.Errorf("outcome: %v", err)
			}
		})
	}
	owed, bound := 0, testContext(t)
	owes := func(n int, when string) {
		t.Helper()
		for tick := time.Tick(5 * time.Millisecond); s.Status().Unanswered != n || told.Load() != int64(owed-n); <-tick {
			if bound.Err() != nil || s.Err() != nil {
				t.Fatalf("%s: %d unanswered, %d of %d outcomes, %v; want %d unanswered", when, s.Status().Unanswered, told.Load(), owed, s.Err(), n)
			}
		}
	}
	for _, step := range []struct {
		when   string
		prefix string
		n      int
		owes   int
	}{
		{"above the bound, on the channel in use", "a", 100, 100},
		{"an ID that is on that channel, so another takes its place", "a", 1, 1},
		{"below the bound", "b", 15, 16},
		{"another channel in its place", "b", 1, 17},
		{"above the bound, with a channel that was replaced", "c", 10, 11},
	} {
		abandon(step.prefix, step.n)
		owed += step.n
		owes(step.owes, step.when)
		if err := outcomes(t, s, broker.Message{RoutingKey: good, ID: step.when})[0]; err != nil {
			t.Errorf("%s: to a healthy queue: %v", step.when, err)
		}
	}
}

// Callers that stop waiting give their places in the window back. So more messages than the window has places can be
// unanswered, and there is still room.
func TestCallersThatStopWaitingGiveTheirPlacesBack(t *testing.T) {
	t.Parallel()
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	silent, good, x := workQueue(t, s), workQueue(t, s), exchange(t, s, broker.Direct)
	const keys, each = 8, 150 // the most messages of one key before the first answer
	for key := range keys {
		bind(t, s, silent, x, fmt.Sprint(key))
	}
	bind(t, s, good, x, "good")
	published(t, s, broker.Message{Exchange: x, RoutingKey: "good", ID: "first"}) // otherwise each would go alone
	suspend(t, silent)
	for key := range keys {
		ctx, cancel := context.WithCancel(testContext(t))
		msgs := make([]broker.Message, each)
		for i := range msgs {
			msgs[i] = broker.Message{Exchange: x, RoutingKey: fmt.Sprint(key), ID: fmt.Sprint(key, ".", i)}
		}
		written := make(chan struct{})
		go func() {
			defer close(written)
			s.Publish(ctx, msgs, func(int, error) {})
		}()
		select {
		case <-written:
		case <-time.After(patience):
			t.Errorf("%d unanswered, and no other message is written", s.Status().Unanswered)
		}
		cancel()
		<-written
		bound := testContext(t)
		for tick := time.Tick(5 * time.Millisecond); s.Status().Unanswered < (key+1)*each; <-tick {
			if bound.Err() != nil || s.Err() != nil {
				t.Fatalf("%d unanswered, %v", s.Status().Unanswered, s.Err())
			}
		}
	}
	if err := outcomes(t, s, broker.Message{RoutingKey: good, ID: "m"})[0]; err != nil {
		t.Errorf("to a healthy queue: %v", err)
	}
}

// suspend stops a queue from answering until the test ends.
func suspend(t testing.TB, queue string) {
	t.Helper()
	pid := fmt.Sprintf(`amqqueue:get_pid(element(2, rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"%s">>))))`, queue)
	eval(t, "sys:suspend("+pid+").")
	t.Cleanup(func() { eval(t, "sys:resume("+pid+").") }) // runs before the queue is deleted
}
