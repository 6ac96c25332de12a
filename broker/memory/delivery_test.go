package memory_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func TestDeliveriesOfTryGetOutliveTheQueue(t *testing.T) {
	t.Parallel()
	b := memory.New()
	s := open(t, b)
	declare(t, s, "q", "q.dead")
	fill(t, s, "q", 1, 3)
	got := wantGet(t, s, "q", "1", "2", "3")
	ok(t, s.Delete(bg, "q"))
	if err := got[0].Retry(bg, got[0].Forward(), 0); !errors.Is(err, broker.ErrUnroutable) {
		t.Errorf("retry: %v", err)
	}
	ok(t, got[0].DeadLetter(bg, got[0].Forward()))
	ok(t, got[1].Release())
	declare(t, s, "q")
	ok(t, got[2].Retry(bg, got[2].Forward(), 0))
	wantGet(t, s, "q.dead", "1")
	wantGet(t, s, "q", "3")
}

func TestFailedForwardLeavesTheDeliveryOpen(t *testing.T) {
	t.Parallel()
	s := open(t, memory.New())
	declare(t, s, "q")
	fill(t, s, "q", 1, 1)
	d := get(t, s, "q")[0]
	anonymous := d.Forward()
	anonymous.ID = ""
	for name, err := range map[string]error{
		"no ID":    d.Retry(bg, anonymous, 0),
		"ended":    d.Retry(ended(), d.Forward(), 0),
		"no queue": d.DeadLetter(bg, d.Forward()),
	} {
		want := map[string]error{"no ID": broker.ErrRejected, "ended": context.Canceled, "no queue": broker.ErrUnroutable}[name]
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	ok(t, d.Retry(bg, d.Forward(), -time.Second))
	again := get(t, s, "q")[0]
	if again.Redelivered || again.Losses != 0 || again.Exchange != "" || again.RoutingKey != "q" {
		t.Errorf("got %+v", again)
	}
}

// Many goroutines settle one delivery while its session dies. Either one of them wins or the delivery is lost. The
// message is then settled once, or back in the queue.
func TestSettleRaces(t *testing.T) {
	t.Parallel()
	b := memory.New()
	for range 300 {
		s := open(t, b)
		declare(t, s, "q", "q.dead", "q.suspects")
		fill(t, s, "q", 1, 1)
		d := next(t, consume(t, s, "q", 1))
		var mu sync.Mutex
		won := map[string]int{}
		var wg sync.WaitGroup
		try := func(how string, settle func() error) {
			wg.Go(func() {
				err := settle()
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won[how]++
				case !errors.Is(err, broker.ErrSettled) && !errors.Is(err, broker.ErrDeliveryLost):
					t.Errorf("%s: %v", how, err)
				}
			})
		}
		try("ack", d.Ack)
		try("ack", d.Ack)
		try("release", d.Release)
		try("retry", func() error { return d.Retry(bg, d.Forward(), 0) })
		try("suspect", func() error { return d.Suspect(bg, d.Forward()) })
		try("dead", func() error { return d.DeadLetter(bg, d.Forward()) })
		wg.Go(func() { b.KillSessions() })
		wg.Wait()
		total := won["ack"] + won["release"] + won["retry"] + won["suspect"] + won["dead"]
		if total > 1 {
			t.Fatalf("settled more than once: %v", won)
		}
		s = open(t, b)
		inQueue, suspects, dead := get(t, s, "q"), get(t, s, "q.suspects"), get(t, s, "q.dead")
		if len(inQueue) != 1-won["ack"]-won["suspect"]-won["dead"] || len(suspects) != won["suspect"] || len(dead) != won["dead"] {
			t.Fatalf("won %v, %d in the queue, %d suspects and %d dead", won, len(inQueue), len(suspects), len(dead))
		}
		for _, d := range inQueue {
			if total == 0 && d.Losses != 1 {
				t.Fatalf("the lost message has %d losses", d.Losses)
			}
		}
		ok(t, s.Delete(bg, "q"))
		ok(t, s.Delete(bg, "q.dead"))
		ok(t, s.Delete(bg, "q.suspects"))
		ok(t, s.Close(bg))
	}
}
