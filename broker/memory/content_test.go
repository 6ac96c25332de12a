package memory_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func TestContentCountsEverything(t *testing.T) {
	t.Parallel()
	b := memory.New()
	s := open(t, b)
	declare(t, s, "q", "q.dead", "q.suspects", "empty")
	fill(t, s, "q", 1, 5)
	c := consume(t, s, "q", 2)
	ok(t, next(t, c).DeadLetter(bg, broker.Message{ID: "1"}))
	ok(t, next(t, c).Suspect(bg, broker.Message{ID: "2"}))
	ok(t, publish(s, broker.Message{RoutingKey: "q", ID: "6", NotBefore: time.Now().Add(time.Hour)}))
	got := b.Content()
	want := memory.Content{
		Queues: map[string]broker.QueueInfo{
			"q": {Ready: 1, Unsettled: 2, Consumers: 1}, "q.dead": {Ready: 1}, "q.suspects": {Ready: 1}, "empty": {},
		},
		Delayed: 1, Dead: 1, Total: 6,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || got.Pending() != 5 {
		t.Errorf("%d pending of %v\nwant 5 of %v", got.Pending(), got, want)
	}
}

// drains calls Drain and lets it wait. It returns a channel that receives the result.
func drains(ctx context.Context, b *memory.Broker) <-chan error {
	result := make(chan error, 1)
	go func() { result <- b.Drain(ctx) }()
	synctest.Wait()
	return result
}

// Drain returns as soon as the last message is gone, whatever removed it.
func TestDrainEndsWith(t *testing.T) {
	t.Parallel()
	get1 := func(t *testing.T, s broker.Session) broker.Delivery { return get(t, s, "q")[0] }
	for name, end := range map[string]func(t *testing.T, s broker.Session){
		"ack":         func(t *testing.T, s broker.Session) { ok(t, get1(t, s).Ack()) },
		"dead letter": func(t *testing.T, s broker.Session) { ok(t, get1(t, s).DeadLetter(bg, broker.Message{ID: "1"})) },
		"delete":      func(t *testing.T, s broker.Session) { ok(t, s.Delete(bg, "q")) },
		"purge": func(t *testing.T, s broker.Session) {
			_, err := s.Purge(bg, "q")
			ok(t, err)
		},
		"undeliverable": func(t *testing.T, s broker.Session) {
			ok(t, get1(t, s).Retry(bg, broker.Message{ID: "1"}, time.Minute))
			ok(t, s.Delete(bg, "q"))
			<-time.After(time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := memory.New()
				s := open(t, b)
				declare(t, s, "q", "q.dead")
				ok(t, b.Drain(ended()))
				fill(t, s, "q", 1, 1)
				first, second := drains(bg, b), drains(bg, b)
				end(t, s)
				synctest.Wait()
				for _, result := range []<-chan error{first, second} {
					select {
					case err := <-result:
						ok(t, err)
					default:
						t.Fatal("Drain has not returned")
					}
				}
				ok(t, b.Drain(ended()))
			})
		})
	}
}

func TestDrainWaitsFor(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(t *testing.T, s broker.Session){
		"ready":     func(*testing.T, broker.Session) {},
		"unsettled": func(t *testing.T, s broker.Session) { get(t, s, "q") },
		"released":  func(t *testing.T, s broker.Session) { ok(t, get(t, s, "q")[0].Release()) },
		"suspect":   func(t *testing.T, s broker.Session) { ok(t, get(t, s, "q")[0].Suspect(bg, broker.Message{ID: "1"})) },
		"delayed": func(t *testing.T, s broker.Session) {
			ok(t, get(t, s, "q")[0].Retry(bg, broker.Message{ID: "1"}, 24*time.Hour))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := memory.New()
				s := open(t, b)
				declare(t, s, "q", "q.suspects")
				fill(t, s, "q", 1, 1)
				ctx, cancel := context.WithTimeout(bg, time.Hour)
				defer cancel()
				result := drains(ctx, b)
				begin(t, s)
				began := time.Now()
				err := <-result
				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 messages are left") || time.Since(began) != time.Hour {
					t.Errorf("after %v: %v", time.Since(began), err)
				}
			})
		})
	}
}

func TestEmptiedIsClosedWhenAQueueBecomesEmpty(t *testing.T) {
	t.Parallel()
	closed := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	b := memory.New()
	s := open(t, b)
	declare(t, s, "q", "other")
	fill(t, s, "q", 1, 2)
	fill(t, s, "other", 1, 1)
	emptied := b.Emptied()
	ds := get(t, s, "q")
	ok(t, ds[0].Ack())
	if closed(emptied) {
		t.Error("Emptied is closed while each queue still has a message")
	}
	ok(t, ds[1].Ack())
	if !closed(emptied) || closed(b.Emptied()) {
		t.Error("Emptied is not closed although the queue is empty, or the next channel is closed too")
	}
}

// Consumers publish follow-up messages. Drain must not return between two of them, and must not miss the end.
func TestDrainUnderLoad(t *testing.T) {
	t.Parallel()
	for range 200 {
		b := memory.New()
		s := open(t, b)
		declare(t, s, "q")
		fill(t, s, "q", 1, 10)
		var wg sync.WaitGroup
		for range 4 {
			c := consume(t, s, "q", 1)
			wg.Go(func() {
				for d := range c.Deliveries() {
					if len(d.ID) < 4 {
						ok(t, publish(s, broker.Message{RoutingKey: "q", ID: d.ID + "+"}))
					}
					ok(t, d.Ack())
				}
			})
		}
		ok(t, b.Drain(t.Context()))
		if c := b.Content(); c.Total != 0 {
			t.Fatalf("Drain returned with %+v", c)
		}
		ok(t, s.Close(bg))
		wg.Wait()
	}
}

func TestStrandedIsWhatNobodyTakes(t *testing.T) {
	t.Parallel()
	b := memory.New()
	s, other := open(t, b), open(t, b)
	declare(t, s, "q", "q.dead", "q.suspects", "p")
	fill(t, s, "q", 1, 2)
	ok(t, get(t, s, "q")[0].Suspect(bg, broker.Message{ID: "1"}))
	fill(t, s, "q.dead", 3, 5)
	fill(t, s, "p", 6, 9)
	later := time.Now().Add(time.Hour)
	ok(t, publish(s, broker.Message{RoutingKey: "q", ID: "10", NotBefore: later}))
	ok(t, publish(s, broker.Message{RoutingKey: "p", ID: "11", NotBefore: later}))
	stranded := func(want string) {
		t.Helper()
		if messages, dead := b.Stranded(); fmt.Sprint(messages, " ", dead) != want {
			t.Errorf("%d messages and %d dead letters, want %s", messages, dead, want)
		}
	}
	ok(t, other.Declare(bg, broker.Topology{Queues: []broker.QueueSpec{{Name: "reply", Ephemeral: true}}}))
	fill(t, s, "reply", 12, 12)
	c := consume(t, other, "q", 1)
	ok(t, s.Close(bg))
	stranded("5 0") // the messages for p
	ok(t, c.Stop(bg))
	stranded("8 0")
	ok(t, other.Close(bg))
	stranded("8 3")
}
