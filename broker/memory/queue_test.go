package memory_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func TestDeepQueueKeepsOrderAndGivesMemoryBack(t *testing.T) {
	t.Parallel()
	s := open(t, memory.New())
	declare(t, s, "q")
	const n = 100_000
	fill(t, s, "q", 1, n)
	got := get(t, s, "q")
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := w; i < n; i += 4 {
				if err := got[n-1-i].Release(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for i, d := range get(t, s, "q") {
		if d.ID != fmt.Sprint(i+1) || !d.Redelivered || d.Losses != 0 {
			t.Fatalf("at %d: %s redelivered %t losses %d", i, d.ID, d.Redelivered, d.Losses)
		}
		ok(t, d.Ack())
	}
	if info, err := s.Inspect(bg, "q"); err != nil || info != (broker.QueueInfo{}) {
		t.Fatalf("%+v %v", info, err)
	}
}
