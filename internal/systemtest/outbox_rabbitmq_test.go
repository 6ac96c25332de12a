package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
)

// keys returns the names of n queues that belong to the place. Each is bound to a key of its own name.
func (r *rabbit) keys(n int) []string {
	r.t.Helper()
	var names []string
	for i := range n {
		names = append(names, fmt.Sprint(r.name, ".", i))
	}
	r.sweep(names...)
	return names
}

func withKeys(names []string) func(*dispatcher.ServerConfig) {
	return func(c *dispatcher.ServerConfig) {
		for _, name := range names {
			c.InitQueues = append(c.InitQueues, dispatcher.Queue{Name: name, BindingKeys: []string{name}})
		}
	}
}

// 1,000 tasks are published to ten keys while the link is down, comes back, is cut again and is torn in the middle of
// frames. The tasks of each key arrive in order. Some may arrive twice, and none is lost.
func TestRabbitMQ_OutboxOverALinkThatIsDownAndFlaps(t *testing.T) {
	t.Parallel()
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	const keys, each = 10, 100
	r := newPlace(t)
	t.Logf("replay with: go test -race -run %s -chaos.seed %d ./internal/systemtest", t.Name(), seed)
	names := r.keys(keys)
	r.serve(plainOutbox, withKeys(names), func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds = 0 })
	r.cut()

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	flapping, calm := context.WithCancel(ctx)
	var outboxed, direct, again atomic.Int64
	var publishers, network sync.WaitGroup
	half := make(chan struct{}, keys)
	for k := range keys {
		publishers.Go(func() {
			for i := range each {
				if i == each/2 {
					half <- struct{}{}
				}
				task := named(fmt.Sprintf("%d-%03d", k, i), names[k])
				for ctx.Err() == nil {
					err := r.server.PublishContext(ctx, task)
					if errors.Is(err, dispatcher.ErrUnconfirmed) {
						again.Add(1)
						continue
					}
					switch {
					case err == nil:
						direct.Add(1)
					case errors.Is(err, dispatcher.ErrInOutbox):
						outboxed.Add(1)
					default:
						t.Error(err)
					}
					break
				}
				if i >= each/2 { // the second half is published while the link flaps
					pause(ctx, 100*time.Millisecond)
				}
			}
		})
	}
	for range keys {
		wait(t, half, "first half published without a link")
	}
	r.proxy.Refuse(false)
	network.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 0))
		for pause(flapping, time.Duration(200+rng.IntN(1500))*time.Millisecond) {
			if rng.IntN(2) == 0 {
				r.proxy.Cut()
			} else {
				r.proxy.CutAfter(rng.IntN(20_000))
			}
		}
		r.proxy.CutAfter(-1)
	})
	publishers.Wait()
	calm()
	network.Wait()
	eventually(t, "the outbox is empty", func() bool { return r.server.Health(ctx).Outbox.Entries == 0 })

	twice := 0
	for k, name := range names {
		ready, _ := r.count(name)
		next, seen := 0, map[string]bool{}
		for _, d := range r.take(name, ready) {
			if seen[d.MessageId] {
				twice++
				continue
			}
			seen[d.MessageId] = true
			if want := fmt.Sprintf("%d-%03d", k, next); d.MessageId != want {
				t.Fatalf("key %d: %s where %s was next", k, d.MessageId, want)
			}
			next++
		}
		if next != each {
			t.Errorf("key %d: %d of %d arrived", k, next, each)
		}
	}
	s := r.server.Stats()
	t.Logf("%d through the outbox, %d direct, %d published again by the caller, %d arrived twice, %d reconnects",
		outboxed.Load(), direct.Load(), again.Load(), twice, s.Reconnects)
	if outboxed.Load() < keys*each/2 || s.Reconnects < 2 {
		t.Error("too few outboxed tasks or reconnects to test anything")
	}
}

func TestRabbitMQ_ARefusedEntryDoesNotBlockItsKey(t *testing.T) {
	t.Parallel()
	refused := make(chan dispatcher.PublishEvent, 10)
	r := newRabbit(t, plainOutbox, func(c *dispatcher.ServerConfig) {
		c.Hooks.OutboxRefused = func(e dispatcher.PublishEvent) { refused <- e }
	})
	r.cut()
	for range 3 { // the queue does not exist
		kept(t, "publish", r.server.Publish(dispatcher.NewTask("n")))
	}
	r.back()
	for range 3 {
		if e := wait(t, refused, "refusal"); !errors.Is(e.Err, dispatcher.ErrUnroutable) {
			t.Errorf("got %v", e.Err)
		}
	}
	eventually(t, "the outbox has only dead entries", func() bool { return r.server.Health(t.Context()).Outbox == dispatcher.OutboxHealth{Dead: 3} })
	got := make(chan int, 1)
	r.worker(tasks{"n": fn(func(n int) { got <- n })})
	eventually(t, "a direct publish succeeds", func() bool { return r.server.Publish(dispatcher.NewTask("n", 7)) == nil })
	if n := wait(t, got, "task"); n != 7 {
		t.Errorf("got %d", n)
	}
}

// A full queue nacks. The entries wait for room and are sent in order, and none becomes dead.
func TestRabbitMQ_EntriesForAFullQueueWaitForRoom(t *testing.T) {
	t.Parallel()
	const n = 5
	r := newRabbit(t, plainOutbox)
	ch := r.raw()
	args := amqp.Table{"x-max-length": 1, "x-overflow": "reject-publish"}
	if _, err := ch.QueueDeclare(r.name, true, false, false, false, args); err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind(r.name, r.name, r.name, false, nil); err != nil {
		t.Fatal(err)
	}
	r.cut()
	for i := range n {
		kept(t, "publish", r.server.Publish(&dispatcher.Task{UUID: fmt.Sprint(i), Name: "n"}))
	}
	r.back()
	for i := range n { // one at a time fits into the queue
		r.queueIs(r.name, 1)
		outcome(t, "publish to a key with entries", r.server.Publish(dispatcher.NewTask("n")), dispatcher.ErrInOutbox)
		if d := r.take(r.name, 1)[0]; d.MessageId != fmt.Sprint(i) {
			t.Errorf("task %s is at position %d", d.MessageId, i)
		}
	}
	if h := r.server.Health(t.Context()).Outbox; h.Dead != 0 {
		t.Errorf("outbox %+v", h)
	}
	r.server.Close()
}

// The broker refuses one entry because of its size, by closing a channel. The entry is buried at once, and no other
// entry is affected.
func TestRabbitMQ_AnEntryTooLargeForTheBrokerIsBuried(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.run("eval", "application:set_env(rabbit, max_message_size, 100000), persistent_term:put(max_message_size, 100000).") // the latter for RabbitMQ 4
	refused := make(chan dispatcher.PublishEvent, 10)
	r := placeOn(t, n.url)
	names := r.keys(20)
	r.serve(plainOutbox, withKeys(names), func(c *dispatcher.ServerConfig) {
		c.Hooks.OutboxRefused = func(e dispatcher.PublishEvent) { refused <- e }
	})
	r.cut()
	for round := range 2 { // the server knows the limit in the second round
		for i, name := range names {
			task := &dispatcher.Task{UUID: fmt.Sprint(round, ".", i), Name: "n", RoutingKey: name}
			if i == 0 {
				task.Args = []dispatcher.TaskArgument{{Type: "string", Value: strings.Repeat("x", 300_000)}}
			}
			kept(t, "publish", r.server.Publish(task))
		}
		r.back()
		if e := wait(t, refused, "refusal"); e.RoutingKey != names[0] || !errors.Is(e.Err, dispatcher.ErrTooLarge) || !errors.Is(e.Err, dispatcher.ErrRejected) || !strings.Contains(e.Err.Error(), "100000") {
			t.Errorf("refused %+v", e)
		}
		for _, name := range names[1:] {
			eventually(t, "the other entries have arrived", func() bool { ready, _ := r.count(name); return ready >= round+1 })
		}
		eventually(t, "the outbox is empty", func() bool {
			return r.server.Health(t.Context()).Outbox == dispatcher.OutboxHealth{Dead: round + 1}
		})
		r.cut()
	}
	r.back()
	err := r.server.Publish(dispatcher.NewTask("n", strings.Repeat("x", 300_000)))
	outcome(t, "direct", err, dispatcher.ErrTooLarge)
	if s := r.server.Stats(); s.Reconnects != 3 {
		t.Errorf("%d reconnects, want this test's three", s.Reconnects)
	}
}
