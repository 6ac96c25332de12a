package memory_test

import (
	"testing"
	"testing/synctest"
	"time"

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
