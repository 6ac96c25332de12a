package engine

import (
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// The verdict on a call and the end of its function are known in the same moment. A delivery that waits for both takes
// the verdict: running the task again would be wrong.
func TestADeliveryThatWaitsTakesTheVerdict(t *testing.T) {
	t.Parallel()
	lost := make(chan struct{})
	close(lost)
	cfg := &Config{Handler: anyHandler{}, Counters: &Counters{}, Shared: NewShared(), Limit: 1}
	s := New(cfg)
	defer s.phases.end()
	call := func(settler broker.Settler) *Call {
		m := broker.Message{ID: "1", Type: "t"}
		c := cfg.newCall(broker.Delivery{Message: m, Queue: "q", Redelivered: true, Settler: settler}, &feed{exact: true})
		c.run = run{key: taskKey{"q", "t", "1"}, again: true, delivery: &c.Delivery, since: time.Now()}
		return c
	}
	for range 200 { // select takes either of two ready cases
		first, second := call(lostSettler{lost: lost}), call(lostSettler{})
		cfg.Shared.running.begin(&first.run)
		other, heir := cfg.Shared.running.begin(&second.run)
		if other != &first.run || !heir {
			t.Fatal("the second does not wait for the first")
		}
		cfg.Shared.running.finish(&first.run, verdict.Verdict{Action: verdict.Ack})
		if v, ours := s.shelf.await(second, other, nil); ours || v.Action != verdict.Ack {
			t.Fatalf("%v, to be called %t", v.Action, ours)
		}
	}
}

type lostSettler struct {
	broker.Settler
	lost chan struct{}
}

func (s lostSettler) Lost() <-chan struct{} { return s.lost }
