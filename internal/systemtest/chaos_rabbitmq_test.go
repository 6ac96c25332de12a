package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
)

// Every confirmed task runs, even over bad links. Eight goroutines publish 50,000 tasks to two processes over three
// links. About once a second, each link is cut, torn in the middle of a frame, or stalled.
func TestNothingConfirmedIsLostOnRabbitMQ(t *testing.T) {
	if order := os.Getenv(chaosWorkerVar); order != "" {
		workerMain(t, order, tasks{
			"count": fn(func(n int) error { _, err := fmt.Printf("ran %d\n", n); return err }),
		})
		return
	}
	t.Parallel()
	place := newPlace(t)
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with: go test -race -run '^%s$' -chaos.seed %d ./internal/systemtest", t.Name(), seed)

	const publishers, batches, size = 8, 125, 50
	const total = publishers * batches * size
	ctx, cancel := context.WithTimeout(t.Context(), chaosBound)
	defer cancel()
	links := []*badLink{newBadLink(place), newBadLink(place), newBadLink(place)}

	place.serve(place.ownQueue, links[0].use)
	runs := newRunCount(total)
	workers := []*workerProcess{
		startWorker(t, ctx, chaosOrder{links[1].url, place.name, 20}, runs.ran),
		startWorker(t, ctx, chaosOrder{links[2].url, place.name, 5}, runs.ran),
	}
	for _, w := range workers {
		select {
		case <-w.ready:
		case <-w.ended:
			t.Fatal("a worker process ended before it was ready")
		case <-ctx.Done():
			t.Fatal("the workers did not get ready in time")
		}
	}

	began := time.Now()
	heal := breakLinks(t, links, seed)
	var confirmed, notSent, unknown atomic.Int64
	// publish publishes unconfirmed tasks again, as a careful user would.
	publish := func(batch []*dispatcher.Task) {
		for len(batch) > 0 && ctx.Err() == nil {
			errs := place.server.PublishBatch(ctx, batch)
			if errs == nil {
				errs = make([]error, len(batch))
			}
			var again []*dispatcher.Task
			for i, err := range errs {
				switch {
				case err == nil:
					confirmed.Add(1)
					continue
				case errors.Is(err, dispatcher.ErrNotSent):
					notSent.Add(1)
				case errors.Is(err, dispatcher.ErrUnconfirmed):
					unknown.Add(1)
				default:
					t.Error(err)
					return
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
					batch[i] = dispatcher.NewTask("count", (p*batches+b)*size+i)
				}
				publish(batch)
			}
		})
	}
	wg.Wait()
	published := time.Since(began)
	if n := confirmed.Load(); n != total {
		t.Fatalf("%d of %d tasks confirmed within %v", n, total, published)
	}
	select {
	case <-runs.all:
	case <-workers[0].ended:
	case <-workers[1].ended:
	case <-ctx.Done():
	}
	took := time.Since(began)
	heal()
	if lost := runs.missing(); lost > 0 {
		ready, consumers := place.count(place.name)
		t.Fatalf("%d of %d confirmed tasks did not run within %v; %d are ready for %d consumers", lost, total, took, ready, consumers)
	}
	// When a connection dies silently, its deliveries return only when the broker notices. Then only the two workers are
	// left, which may have several subscriptions each.
	const most = 2 * 10
	eventually(t, "the queue is empty and only the two workers consume it", func() bool {
		ready, consumers := place.count(place.name)
		return ready == 0 && consumers >= 2 && consumers <= most
	})
	if err := place.server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	s := place.server.Stats()
	reconnects := s.Reconnects
	var lines []string
	for i, w := range workers {
		stats := w.stop()
		reconnects += stats.Reconnects
		lines = append(lines, fmt.Sprintf("worker %d: %d executions, %d reconnects, %d deliveries lost, %d released; %s",
			i+1, w.executions, stats.Reconnects, stats.Lost, stats.Released, links[i+1]))
		if w.executions == 0 {
			t.Errorf("worker %d ran no task", i+1)
		}
	}
	if reconnects == 0 {
		t.Error("no reconnects: the links were never broken")
	}
	for i, l := range links {
		eventually(t, fmt.Sprintf("link %d has no open connection", i), func() bool { return l.proxy.Connections() == 0 })
	}
	if n, _ := place.count(place.name + ".dead"); n > 0 {
		t.Errorf("%d dead letters", n)
	}
	executions, twice := runs.count()
	left, _ := place.count(place.name) // released by a worker that stopped; they have run before
	t.Logf("%d tasks confirmed in %.1f s, all run after %.1f s: %d executions, %d tasks ran more than once, %d are left to run again\n"+
		"publisher: repeated %d not sent, %d unknown; %d reconnects; %s\n%s",
		total, published.Seconds(), took.Seconds(), executions, twice, left,
		notSent.Load(), unknown.Load(), s.Reconnects, links[0], strings.Join(lines, "\n"))
}

// badLink is the network between one process and the broker.
type badLink struct {
	proxy *brokertest.Proxy
	url   string // the broker's, through the proxy

	cuts, torn, short, long int // how often the link was harmed, and how; read after heal
}

func (l *badLink) String() string {
	return fmt.Sprintf("link: %d cuts, %d torn frames, %d short stalls, %d long ones, %d connections made", l.cuts, l.torn, l.short, l.long, l.proxy.Accepted())
}

func newBadLink(place *rabbit) *badLink {
	place.t.Helper()
	l := &badLink{proxy: brokertest.NewProxy(place.t, place.url.Host)}
	u := *place.url
	u.Host = l.proxy.Addr()
	query := u.Query()
	query.Set("heartbeat", "1") // a peer that is silent for 2 s is dead
	u.RawQuery = query.Encode()
	l.url = u.String()
	return l
}

// use makes a server of this process use the link.
func (l *badLink) use(c *dispatcher.ServerConfig) { c.AMQPConnectionString = l.url }

// breakLinks harms each link independently until heal is called or the test ends.
func breakLinks(t *testing.T, links []*badLink, seed uint64) (heal func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i, l := range links {
		wg.Go(func() { l.run(ctx, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	heal = func() { cancel(); wg.Wait() }
	t.Cleanup(heal)
	return heal
}

func (l *badLink) run(ctx context.Context, rng *rand.Rand) {
	defer l.proxy.CutAfter(-1)
	between := func(least, most time.Duration) time.Duration {
		return least + time.Duration(rng.Int64N(int64(most-least)))
	}
	stall := func(d time.Duration) {
		l.proxy.Stall(true)
		pause(ctx, d)
		l.proxy.Stall(false)
	}
	for pause(ctx, between(300*time.Millisecond, 1700*time.Millisecond)) {
		switch rng.IntN(8) {
		case 0, 1:
			l.cuts++
			l.proxy.Cut()
		case 2, 3, 4:
			l.torn++
			l.proxy.CutAfter(1 + rng.IntN(3000))
		case 5, 6: // short congestion, which may go unnoticed
			l.short++
			stall(between(50*time.Millisecond, time.Second))
		case 7: // longer than the adapter's patience, which ends the session
			l.long++
			stall(between(2500*time.Millisecond, 4*time.Second))
		}
	}
}

// pause waits for d. It returns false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
