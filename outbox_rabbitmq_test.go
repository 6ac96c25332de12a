package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// keys makes n queues of the place's own, each under a key of its own name.
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
			c.InitQueues = append(c.InitQueues, dispatcher.Queue{name, []string{name}})
		}
	}
}

// 1,000 tasks over ten keys, while the link is down, comes back, is cut again and torn in the middle of frames: each key
// arrives in its order, perhaps some twice, and none is lost.
func TestRabbitMQ_OutboxOverALinkThatIsDownAndFlaps(t *testing.T) {
	t.Parallel()
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	const keys, each = 10, 100
	r := newPlace(t)
	t.Logf("replay with: go test -race -run %s -chaos.seed %d .", t.Name(), seed)
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
		wait(t, half, "first half, without a link")
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
		t.Error("nothing was tried")
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
	eventually(t, "the key is free", func() bool { return r.server.Health(t.Context()).Outbox == dispatcher.OutboxHealth{Dead: 3} })
	got := make(chan int, 1)
	r.worker(tasks{"n": fn(func(n int) { got <- n })})
	eventually(t, "a direct publish", func() bool { return r.server.Publish(dispatcher.NewTask("n", 7)) == nil })
	if n := wait(t, got, "task"); n != 7 {
		t.Errorf("got %d", n)
	}
}
