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
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

func TestOutboxKeepsWhatIsPublishedWhileDisconnected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		events := make(chan dispatcher.PublishEvent, 100)
		r := newRig(t, withQueue, plainOutbox, func(c *dispatcher.ServerConfig) {
			c.Hooks.Published = func(e dispatcher.PublishEvent) { events <- e }
		})
		down(r, true)
		began := time.Now()
		filled := dispatcher.NewTask("a", 1)
		filled.Headers = map[string]interface{}{"tenant": "blue", "n": 3}
		kept(t, "Publish", r.server.Publish(filled))
		if len(filled.UUID) != 36 || filled.RoutingKey != "jobs" {
			t.Errorf("task %+v: not filled", filled)
		}
		kept(t, "PublishContext", r.server.PublishContext(t.Context(), dispatcher.NewTask("b")))
		errs := r.server.PublishBatch(t.Context(), []*dispatcher.Task{dispatcher.NewTask("c"), nil, dispatcher.NewTask(""), dispatcher.NewTask("d")})
		kept(t, "batch, task 0", errs[0])
		outcome(t, "batch, nil task", errs[1], dispatcher.ErrRejected)
		outcome(t, "batch, task without a name", errs[2], dispatcher.ErrTaskName)
		kept(t, "batch, task 3", errs[3])
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v, want no wait", took)
		}
		if h := r.server.Health(t.Context()); h.Outbox != (dispatcher.OutboxHealth{Entries: 4}) || h.OK() {
			t.Errorf("health %+v", h)
		}
		time.AfterFunc(time.Minute, func() { up(r) })
		drained(t, r)
		ds, err := r.session().TryGet(t.Context(), "jobs", 10)
		if err != nil || len(ds) != 4 {
			t.Fatalf("%d messages, %v; want 4", len(ds), err)
		}
		for i, name := range []string{"a", "b", "c", "d"} {
			if ds[i].Type != name {
				t.Errorf("message %d is %q, want %q", i, ds[i].Type, name)
			}
		}
		if d := ds[0]; d.ID != filled.UUID || d.ContentType != "application/json" || d.Headers["tenant"] != "blue" ||
			d.Headers["n"] != int64(3) || !d.Timestamp.Equal(began) || !strings.Contains(string(d.Body), filled.UUID) {
			t.Errorf("message %+v", d.Message)
		}
		if s := r.server.Stats(); s.Outboxed != 4 || s.Published != 4 || s.Rejected != 2 || s.NotSent != 0 || s.OutboxDead != 0 {
			t.Errorf("stats %+v", s)
		}
		if err := r.server.Publish(dispatcher.NewTask("e")); err != nil {
			t.Errorf("direct publish after the outbox is empty: %v", err)
		}
		r.server.Close()
		close(events)
		var confirmed, in, refused int
		for e := range events {
			switch {
			case e.Err == nil && e.Name != "e":
				confirmed++
				if e.Duration < time.Minute || e.UUID == "" || e.RoutingKey != "jobs" {
					t.Errorf("event %+v", e)
				}
			case errors.Is(e.Err, dispatcher.ErrInOutbox):
				in++
			case errors.Is(e.Err, dispatcher.ErrRejected):
				refused++
			}
		}
		if confirmed != 4 || in != 4 || refused != 2 {
			t.Errorf("events: %d confirmed, %d kept in the outbox, %d refused; want 4, 4 and 2", confirmed, in, refused)
		}
	})
}

// Ten goroutines publish to ten keys, each key in order. Meanwhile connections die, some while answers are held back.
func TestOutboxKeepsTheOrderOfEachKeyAndLosesNothing(t *testing.T) {
	t.Parallel()
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with: go test -race -run %s -chaos.seed %d ./internal/systemtest", t.Name(), seed)
	synctest.Test(t, func(t *testing.T) {
		const keys, each = 10, 100
		r := newRig(t, withQueues(keys), plainOutbox, func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds = 0 })
		ctx, cancel := context.WithCancel(t.Context())
		var storm sync.WaitGroup
		storm.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 0))
			for pause(ctx, time.Duration(rng.IntN(2000))*time.Millisecond) {
				switch rng.IntN(4) {
				case 0:
					r.chaos.HoldConfirms(true)
					pause(ctx, time.Duration(rng.IntN(3000))*time.Millisecond)
					r.chaos.Kill()
					r.chaos.HoldConfirms(false)
				case 1:
					r.chaos.Block(true)
					pause(ctx, time.Duration(rng.IntN(3000))*time.Millisecond)
					r.chaos.Block(false)
				default:
					r.chaos.Kill()
				}
			}
		})
		var wg sync.WaitGroup
		var outboxed atomic.Int64
		for k := range keys {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(k+1)))
				for i := range each {
					task := named(fmt.Sprintf("%d-%03d", k, i), fmt.Sprint("k", k))
					for {
						err := r.server.Publish(task)
						if errors.Is(err, dispatcher.ErrInOutbox) {
							outboxed.Add(1)
						} else if errors.Is(err, dispatcher.ErrUnconfirmed) {
							continue
						} else if err != nil {
							t.Error(err)
						}
						break
					}
					pause(ctx, time.Duration(rng.IntN(500))*time.Millisecond)
				}
			})
		}
		wg.Wait()
		cancel()
		storm.Wait()
		drained(t, r)
		twice := 0
		for k := range keys {
			next := 0
			seen := map[string]bool{}
			for _, id := range r.ids(fmt.Sprint("k", k)) {
				if seen[id] {
					twice++
					continue
				}
				seen[id] = true
				if want := fmt.Sprintf("%d-%03d", k, next); id != want {
					t.Fatalf("key %d: got %s where %s was next", k, id, want)
				}
				next++
			}
			if next != each {
				t.Errorf("key %d: %d of %d arrived", k, next, each)
			}
		}
		if outboxed.Load() == 0 {
			t.Error("no task went to the outbox")
		}
		t.Logf("%d of %d went through the outbox, %d arrived twice", outboxed.Load(), keys*each, twice)
	})
}

func TestOutboxIsUsedOnlyByKeysThatHaveEntries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueues(2), plainOutbox)
		down(r, true)
		kept(t, "first", r.server.Publish(named("1", "k0")))
		r.chaos.HoldConfirms(true) // the entry stays in flight
		up(r)
		eventuallyWithin(t, time.Minute, "the entry is in flight", func() bool { return r.inspect("k0").Ready == 1 })
		kept(t, "same key", r.server.Publish(named("2", "k0")))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		errs := r.server.PublishBatch(ctx, []*dispatcher.Task{named("3", "k0"), named("4", "k1"), named("5", "k0"), named("6", "k1")})
		for i, want := range []error{dispatcher.ErrInOutbox, dispatcher.ErrUnconfirmed, dispatcher.ErrInOutbox, dispatcher.ErrUnconfirmed} {
			outcome(t, fmt.Sprint("batch, task ", i), errs[i], want)
		}
		if n := r.inspect("k0").Ready; n != 1 {
			t.Errorf("%d messages in flight, want one per key", n)
		}
		r.chaos.HoldConfirms(false)
		drained(t, r)
		if got := strings.Join(r.ids("k0"), " ") + "|" + strings.Join(r.ids("k1"), " "); got != "1 2 3 5|4 6" {
			t.Errorf("got %s", got)
		}
	})
}

func TestOutboxSendsAnEntryAgainWhoseOutcomeIsUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, plainOutbox)
		down(r, true)
		kept(t, "publish", r.server.Publish(named("same", "jobs")))
		kept(t, "publish", r.server.Publish(named("next", "jobs")))
		r.chaos.HoldConfirms(true)
		up(r)
		eventuallyWithin(t, time.Minute, "the entry is sent", func() bool { return r.inspect("jobs").Ready == 1 })
		<-time.After(time.Hour) // the entry is not sent again while the connection lives
		if n := r.inspect("jobs").Ready; n != 1 {
			t.Errorf("%d messages, want the entry once", n)
		}
		r.chaos.Kill()
		eventuallyWithin(t, time.Minute, "the entry is sent again", func() bool { return r.inspect("jobs").Ready == 2 })
		if n := r.server.Health(t.Context()).Outbox.Entries; n != 2 {
			t.Errorf("%d entries, want 2 until the confirmation", n)
		}
		r.chaos.HoldConfirms(false)
		drained(t, r)
		if got := strings.Join(r.ids("jobs"), " "); got != "same same next" {
			t.Errorf("got %s", got)
		}
		if s := r.server.Stats(); s.Published != 2 || s.Outboxed != 2 || s.Unconfirmed != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestADirectPublishWithoutAnAnswerIsNotPutIntoTheOutbox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, plainOutbox)
		r.chaos.HoldConfirms(true)
		result := make(chan error, 1)
		go func() { result <- r.server.Publish(dispatcher.NewTask("n")) }()
		synctest.Wait()
		r.chaos.Kill()
		outcome(t, "publish", <-result, dispatcher.ErrUnconfirmed)
		r.chaos.HoldConfirms(false)
		if n := r.server.Health(t.Context()).Outbox.Entries; n != 0 {
			t.Errorf("%d entries", n)
		}
	})
}

func TestTheOutboxTakesNothingAfterItsContextOrItsServerHasEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, plainOutbox)
		down(r, true)
		cause := errors.New("had enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		task := dispatcher.NewTask("n")
		err := r.server.PublishContext(ctx, task)
		outcome(t, "ended", err, dispatcher.ErrNotSent)
		if !errors.Is(err, context.Canceled) || task.UUID == "" {
			t.Errorf("got %v", err)
		}
		outcome(t, "ended, batch", r.server.PublishBatch(ctx, []*dispatcher.Task{dispatcher.NewTask("n")})[0], dispatcher.ErrNotSent)
		if errs := r.server.PublishBatch(t.Context(), nil); errs != nil {
			t.Errorf("empty batch: %v", errs)
		}
		outcome(t, "nil task", r.server.Publish(nil), dispatcher.ErrRejected)
		outcome(t, "bad argument", r.server.Publish(dispatcher.NewTask("n", make(chan int))), dispatcher.ErrRejected)
		outcome(t, "too large", r.server.Publish(dispatcher.NewTask("n", strings.Repeat("x", 2<<20))), dispatcher.ErrTooLarge)
		r.server.Close()
		outcome(t, "closed", r.server.Publish(dispatcher.NewTask("n")), dispatcher.ErrServerClosed)
		outcome(t, "closed, batch", r.server.PublishBatch(t.Context(), []*dispatcher.Task{dispatcher.NewTask("n")})[0], dispatcher.ErrServerClosed)
		if h := r.server.Health(t.Context()); h.Outbox != (dispatcher.OutboxHealth{}) {
			t.Errorf("health %+v", h)
		}
		if log := r.log.String(); strings.Contains(log, "left in the outbox") {
			t.Error(log)
		}
	})
}

// Publishers, Close and lost connections run at the same time. Every accepted task has arrived or is left in the
// outbox.
func TestEverythingAtOnceWithAnOutbox(t *testing.T) {
	t.Parallel()
	for range 20 {
		outbox := dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{MaxEntries: 50})
		r := newRig(t, withQueues(5), func(c *dispatcher.ServerConfig) { c.Outbox = outbox })
		var mu sync.Mutex
		accepted := map[string]bool{}
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for i := range 100 {
					task := named(fmt.Sprintf("%d-%d", g, i), fmt.Sprint("k", i%5))
					switch err := r.server.Publish(task); {
					case err == nil, errors.Is(err, dispatcher.ErrInOutbox):
						mu.Lock()
						accepted[task.UUID] = true
						mu.Unlock()
					case errors.Is(err, dispatcher.ErrServerClosed), errors.Is(err, dispatcher.ErrOutboxFull), errors.Is(err, dispatcher.ErrUnconfirmed):
					default:
						t.Error(err)
					}
					if i == 30+g*10 {
						r.chaos.Kill()
					}
					if g == 3 && i == 80 {
						wg.Go(r.server.Close)
					}
				}
			})
		}
		wg.Wait()
		for k := range 5 {
			for _, id := range r.ids(fmt.Sprint("k", k)) {
				delete(accepted, id)
			}
		}
		for _, e := range outbox.Entries() {
			delete(accepted, e.UUID)
		}
		if len(accepted) != 0 {
			t.Errorf("lost tasks: %v", accepted)
		}
	}
}

func TestAnEntryGoesToTheExchangeItWasAcceptedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		topology := broker.Topology{
			Exchanges: []broker.Exchange{{Name: "old", Kind: broker.Direct}},
			Queues:    []broker.QueueSpec{{Name: "old-jobs"}},
			Bindings:  []broker.Binding{{Queue: "old-jobs", Exchange: "old", Key: "jobs"}},
		}
		if err := r.session().Declare(t.Context(), topology); err != nil {
			t.Fatal(err)
		}
		outbox := outboxOf(t,
			dispatcher.OutboxEntry{UUID: "old", RoutingKey: "jobs", Exchange: "old", ContentType: "application/cbor"},
			dispatcher.OutboxEntry{UUID: "gone", RoutingKey: "jobs", Exchange: "deleted", ContentType: "application/json"},
			dispatcher.OutboxEntry{UUID: "older", RoutingKey: "jobs"}, // from a program that stored neither exchange nor content type
			dispatcher.OutboxEntry{UUID: "new", RoutingKey: "jobs", Exchange: "jobs", ContentType: "application/json"},
		)
		server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
			Broker: r.chaos, Exchange: "jobs", DefaultRoutingKey: "jobs", Logger: r.log, Outbox: outbox,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		eventuallyWithin(t, time.Hour, "all entries are sent", func() bool { return server.Health(t.Context()).Outbox.Entries == 0 })
		for queue, want := range map[string]string{"old-jobs": "old application/cbor", "jobs": "older application/json new application/json"} {
			ds, err := r.session().TryGet(t.Context(), queue, 10)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range ds {
				got = append(got, d.ID, d.ContentType)
			}
			if got := strings.Join(got, " "); got != want {
				t.Errorf("%s: got %q, want %q", queue, got, want)
			}
		}
		// A server does not know the bindings of another exchange, so it does not declare the exchange and wait.
		dead := outbox.Dead()
		if len(dead) != 1 || dead[0].UUID != "gone" || !strings.Contains(dead[0].Refused, "exchange does not exist") {
			t.Errorf("dead %+v", dead)
		}
	})
}

// The exchange was deleted. The server declares it again, so an entry waits for that.
func TestAnEntryWhoseExchangeIsGoneIsSentAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var gone atomic.Int64
		r := newRig(t, withQueues(1), plainOutbox, script(func(broker.Message) error {
			if gone.Add(-1) >= 0 {
				return broker.ErrExchangeGone
			}
			return nil
		}))
		down(r, true)
		for _, id := range []string{"1", "2"} {
			kept(t, id, r.server.Publish(named(id, "k0")))
		}
		gone.Store(3)
		up(r)
		drained(t, r)
		if got := r.ids("k0"); strings.Join(got, " ") != "1 2" {
			t.Errorf("got %q", got)
		}
		if s := r.server.Stats(); s.OutboxDead != 0 || s.Published != 2 {
			t.Errorf("stats %+v", s)
		}
		eventuallyOK(t, r)
	})
}
