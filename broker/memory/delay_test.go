package memory_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func TestDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := memory.New()
		s := open(t, b)
		declare(t, s, "q", "gone")
		start := time.Now()
		retry := func(queue, id string, delay time.Duration) {
			ok(t, publish(s, broker.Message{RoutingKey: queue, ID: id}))
			d := get(t, s, queue)[0]
			ok(t, d.Retry(bg, d.Forward(), delay))
		}
		retry("q", "third", time.Hour)
		retry("q", "first", time.Second)
		retry("q", "second", time.Minute)
		retry("q", "second too", time.Minute)
		retry("gone", "nowhere", time.Millisecond)
		ok(t, s.Delete(bg, "gone"))
		b.KillSessions() // delayed messages outlive sessions

		s = open(t, b)
		c := consume(t, s, "q", 2)
		for _, want := range []struct {
			id string
			at time.Duration
		}{{"first", time.Second}, {"second", time.Minute}, {"second too", time.Minute}, {"third", time.Hour}} {
			d := <-c.Deliveries()
			if at := time.Since(start); d.ID != want.id || at != want.at || d.Redelivered || d.Losses != 0 {
				t.Errorf("%s at %v, want %s at %v", d.ID, at, want.id, want.at)
			}
			ok(t, d.Ack())
		}
		wantGet(t, s, broker.Undeliverable, "nowhere")
	})
}

// The messages are due in random order, some of them at the same moment. Half of the times have no monotonic reading,
// like a time from the wire.
func TestManyDelayed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 100_000
		s := open(t, memory.New())
		declare(t, s, "q")
		start := time.Now()
		for i := range n {
			at := start.Add(time.Duration(1+rand.IntN(n/3)) * time.Millisecond)
			m := broker.Message{RoutingKey: "q", ID: fmt.Sprint(i), Timestamp: at, NotBefore: at}
			if i%2 == 0 {
				m.NotBefore = at.UTC().Round(0)
			}
			ok(t, publish(s, m))
		}
		c := consume(t, s, "q", 100)
		last, lastNumber := start, -1
		for range n {
			d := <-c.Deliveries()
			if now := time.Now(); !now.Equal(d.Timestamp) || !d.NotBefore.IsZero() {
				t.Fatalf("%s came at %v with NotBefore %v, want it at %v", d.ID, now, d.NotBefore, d.Timestamp)
			}
			var number int
			_, err := fmt.Sscan(d.ID, &number)
			ok(t, err)
			if d.Timestamp.Before(last) || d.Timestamp.Equal(last) && number < lastNumber {
				t.Fatalf("%s of %v came after %d of %v", d.ID, d.Timestamp, lastNumber, last)
			}
			last, lastNumber = d.Timestamp, number
			ok(t, d.Ack())
		}
		if info, err := s.Inspect(bg, "q"); err != nil || info.Ready+info.Unsettled != 0 {
			t.Errorf("more messages came than were sent: %+v %v", info, err)
		}
	})
}

func TestLongestDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, memory.New())
		declare(t, s, "q")
		start := time.Now()
		for _, at := range []time.Time{
			start.Add(broker.MaxDelay + 1),
			start.Add(math.MaxInt64),
			time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		} {
			if err := publish(s, broker.Message{RoutingKey: "q", ID: "m", NotBefore: at}); !errors.Is(err, broker.ErrRejected) {
				t.Errorf("at %v: %v, want ErrRejected", at, err)
			}
		}
		ok(t, publish(s, broker.Message{RoutingKey: "q", ID: "past", NotBefore: time.Date(-9999, 1, 1, 0, 0, 0, 0, time.UTC)}))
		d := wantGet(t, s, "q", "past")[0]
		if err := d.Retry(bg, d.Forward(), broker.MaxDelay+1); !errors.Is(err, broker.ErrRejected) {
			t.Errorf("retry: %v, want ErrRejected", err)
		}
		ok(t, d.Retry(bg, d.Forward(), broker.MaxDelay))
		if err := d.Retry(bg, d.Forward(), broker.MaxDelay+1); !errors.Is(err, broker.ErrSettled) {
			t.Errorf("retry of a settled delivery: %v, want ErrSettled", err)
		}
		ok(t, publish(s, broker.Message{RoutingKey: "q", ID: "publish", NotBefore: start.Add(broker.MaxDelay)}))
		c := consume(t, s, "q", 2)
		for range 2 {
			d := <-c.Deliveries()
			if took := time.Since(start); took != broker.MaxDelay {
				t.Errorf("%s took %v", d.ID, took)
			}
		}
	})
}

// A broker without sessions releases its timer. Messages that become due meanwhile go to the next session, in order.
func TestDelayWithoutSessions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := memory.New()
		s := open(t, b)
		declare(t, s, "q")
		start := time.Now()
		for i, delay := range []time.Duration{3 * time.Second, 90 * time.Second, time.Second, 2 * time.Second} {
			ok(t, publish(s, broker.Message{RoutingKey: "q", ID: fmt.Sprint(i), NotBefore: start.Add(delay)}))
		}
		ok(t, s.Close(bg))
		<-time.After(time.Minute)

		s = open(t, b)
		c := consume(t, s, "q", 4)
		for _, want := range []struct {
			id string
			at time.Duration
		}{{"2", time.Minute}, {"3", time.Minute}, {"0", time.Minute}, {"1", 90 * time.Second}} {
			d := <-c.Deliveries()
			if at := time.Since(start); d.ID != want.id || at != want.at {
				t.Errorf("%s at %v, want %s at %v", d.ID, at, want.id, want.at)
			}
		}
	})
}

// Only the sessions of a broker need closing. A delay of a year must not keep the broker in memory for a year.
func TestForgottenBrokerIsCollected(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(b *memory.Broker, s broker.Session){
		"closed": func(_ *memory.Broker, s broker.Session) { ok(t, s.Close(bg)) },
		"killed": func(b *memory.Broker, _ broker.Session) { b.KillSessions() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			forgotten := func() weak.Pointer[memory.Broker] {
				b := memory.New()
				s, err := b.Open(bg)
				ok(t, err)
				ok(t, publish(s, broker.Message{RoutingKey: "q", ID: "m", NotBefore: time.Now().Add(broker.MaxDelay)}))
				end(b, s)
				return weak.Make(b)
			}()
			for range 10 {
				if runtime.GC(); forgotten.Value() == nil {
					return
				}
			}
			t.Error("a broker without sessions is still in memory")
		})
	}
}
