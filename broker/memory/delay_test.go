package memory_test

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// A delayed message must not stay in memory for days when its queue is long gone.
func TestDeletedQueueLetsGoOfDelayedMessages(t *testing.T) {
	t.Parallel()
	s := open(t, memory.New())
	declare(t, s, "q", "stays")
	freed := make(chan struct{})
	func() {
		body := make([]byte, 1<<16)
		runtime.AddCleanup(&body[0], func(c chan struct{}) { close(c) }, freed)
		ok(t, publish(s, broker.Message{RoutingKey: "q", ID: "1", Body: body}))
		d := get(t, s, "q")[0]
		ok(t, d.Retry(bg, d.Forward(), time.Hour))
	}()
	fill(t, s, "stays", 1, 1)
	d := get(t, s, "stays")[0]
	ok(t, d.Retry(bg, d.Forward(), time.Hour))
	ok(t, s.Delete(bg, "q"))
	for range 10 {
		runtime.GC()
		select {
		case <-freed:
			return
		default:
		}
	}
	select {
	case <-freed:
	case <-time.After(10 * time.Second):
		t.Error("the message of a deleted queue is still in memory")
	}
}

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
		retry("gone", "never", time.Millisecond)
		ok(t, s.Delete(bg, "gone"))
		declare(t, s, "gone")
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
		wantGet(t, s, "gone")
	})
}
