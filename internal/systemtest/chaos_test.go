package systemtest_test

import (
	"errors"
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

var chaosSeed = flag.Uint64("chaos.seed", 0, "seed of TestNothingConfirmedIsLost; 0 = a new one")

// Every confirmed task runs, and the others have an honest outcome. Eight goroutines publish 100,000 tasks while
// sessions are killed at random.
func TestNothingConfirmedIsLost(t *testing.T) {
	t.Parallel()
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with: go test -race -run %s -chaos.seed %d ./internal/systemtest", t.Name(), seed)

	// With synctest's fake clock, waiting for a reconnect takes no real time. The test kills sessions in the middle of
	// the work.
	synctest.Test(t, func(t *testing.T) { chaos(t, seed) })
}

func chaos(t *testing.T, seed uint64) {
	const publishers, batches, size = 8, 125, 100
	const total = publishers * batches * size
	r := newRig(t, func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds = 0 })

	var kills, executions, notSent, unknown atomic.Int64
	runs := make([]atomic.Int32, total)
	var mu sync.Mutex // guards rng
	rng := rand.New(rand.NewPCG(seed, 0))
	killOneIn := func(n int) {
		mu.Lock()
		hit := rng.IntN(n) == 0
		mu.Unlock()
		if hit {
			r.chaos.Kill()
			kills.Add(1)
		}
	}
	run := func(i int) {
		runs[i].Add(1)
		executions.Add(1)
		killOneIn(500)
	}
	work := tasks{"count": fn(run), "fail": fn(func(i int) error { run(i); return errors.New("on purpose") })}
	r.worker("one", work, limit(20))
	r.worker("two", work, limit(5))

	// publish publishes unconfirmed tasks again, as a careful user would.
	publish := func(batch []*dispatcher.Task) {
		for len(batch) > 0 {
			errs := r.server.PublishBatch(t.Context(), batch)
			killOneIn(20)
			var again []*dispatcher.Task
			for i, err := range errs {
				switch {
				case errors.Is(err, dispatcher.ErrNotSent):
					notSent.Add(1)
				case errors.Is(err, dispatcher.ErrUnconfirmed):
					unknown.Add(1)
				case err != nil:
					t.Error(err)
					return
				default:
					continue
				}
				again = append(again, batch[i])
			}
			batch = again
		}
	}
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for b := range batches {
				batch := make([]*dispatcher.Task, size)
				for i := range batch {
					n := (p*batches+b)*size + i
					name := "count"
					if n%10 == 0 {
						name = "fail"
					}
					batch[i] = dispatcher.NewTask(name, n)
				}
				publish(batch)
			}
		})
	}
	wg.Wait()
	eventuallyWithin(t, time.Hour, "everything has run and is settled", func() bool {
		return r.outstanding("jobs") == 0 && r.outstanding("jobs.suspects") == 0
	})

	var lost, twice int
	for i := range runs {
		switch n := runs[i].Load(); {
		case n == 0:
			lost++
		case n > 1:
			twice++
		}
	}
	dead, s := r.inspect("jobs.dead").Ready, r.server.Stats()
	if lost > 0 {
		t.Errorf("%d of %d confirmed tasks never ran", lost, total)
	}
	if int64(dead) != s.DeadLettered || dead < total/10 {
		t.Errorf("%d dead letters, %d counted in Stats, %d failing tasks", dead, s.DeadLettered, total/10)
	}
	if kills.Load() == 0 || s.Reconnects == 0 {
		t.Errorf("%d kills, %d reconnects: no session was lost", kills.Load(), s.Reconnects)
	}
	t.Logf("%d tasks, %d kills, %d reconnects: %d executions, %d tasks ran more than once, %d dead letters; publishes repeated: %d not sent, %d unknown",
		total, kills.Load(), s.Reconnects, executions.Load(), twice, dead, notSent.Load(), unknown.Load())
}
