package systemtest_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

const (
	delayedTasks = 3000
	shortDelay   = 50 * time.Millisecond
	longDelay    = 30 * time.Second
	strayTasks   = 100 // their queue is deleted before they are due
	// killAfter is when the node is killed. The stray tasks are due by then.
	killAfter = 8 * time.Second
	// bootHold is the lateness that is attributed to the node's boot.
	bootHold = 5 * time.Second
)

// 3,000 tasks are delayed by 50 ms to 30 s on a node that is killed after 8 s. The queue of 100 more tasks is deleted
// before they are due. No task is lost or early, and the strays delay no other task. All this takes 32 queues (measured); the
// test allows 48.
func TestDelaysOutliveAKilledBroker(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	r := placeOn(t, n.url)
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with: DISPATCHER_TEST_NODES=1 go test -race -run '^%s$' -chaos.seed %d ./internal/systemtest", t.Name(), seed)
	rng := rand.New(rand.NewPCG(seed, 0))

	gone := r.name + ".gone"
	r.sweep(gone)
	other, _, err := dispatcher.NewServer(r.config(func(c *dispatcher.ServerConfig) {
		c.InitQueues = []dispatcher.Queue{{Name: gone, BindingKeys: []string{gone}}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	other.Close() // an open server would declare the queue again
	r.serve()
	runs := &arrivals{due: make([]time.Time, delayedTasks), at: make([]time.Time, delayedTasks), come: make(chan struct{}, 1)}
	r.worker(tasks{"due": fn(runs.arrive)}, limit(20))
	pid := n.pid()

	began := time.Now()
	strays := publishStrays(r, gone, rng)
	if _, err := r.raw().QueueDelete(gone, false, false, false); err != nil {
		t.Fatal(err)
	}
	const size = 200
	for from := 0; from < delayedTasks; from += size {
		var batch []*dispatcher.Task
		runs.mu.Lock() // they may arrive before PublishBatch returns
		for i := from; i < from+size; i++ {
			task := dispatcher.NewTask("due", i)
			task.Delay = shortDelay + time.Duration(rng.Int64N(int64(longDelay-shortDelay)))
			runs.due[i] = time.Now().Add(task.Delay)
			batch = append(batch, task)
		}
		runs.mu.Unlock()
		if errs := r.server.PublishBatch(t.Context(), batch); errs != nil {
			t.Fatal(errors.Join(errs...))
		}
	}
	published := time.Since(began)
	moment := time.NewTimer(killAfter - time.Since(began))
	defer moment.Stop()
	<-moment.C
	mid := time.Now().Add(-time.Second)
	runs.wait(t, mid) // the strays have not delayed the others
	eventually(t, "the strays are undeliverable", func() bool {
		count, err := r.server.DeadLetters(dispatcher.Undeliverable).Count(t.Context())
		return err == nil && count == strayTasks
	})
	n.kill(pid)
	killed := time.Now()
	n.scripts("start")
	booted := time.Now()
	r.healed()
	back := time.Now()
	for runs.left() > 0 {
		select {
		case <-runs.come:
		case <-time.After(bootHold):
			if late := runs.overdue(time.Now().Add(-bootHold)); late > 0 {
				t.Logf("the boot delays %d tasks", late)
				n.hurry()
			}
		case <-t.Context().Done():
			return
		}
		if time.Since(began) > chaosBound {
			t.Fatalf("%d of %d tasks did not arrive", runs.left(), delayedTasks)
		}
	}
	all := time.Since(began)

	levels := 0
	eventually(t, "no message is waiting", func() bool {
		levels = 0
		waiting := 0
		for name, messages := range n.queues() {
			if strings.HasPrefix(name, "dispatcher.") && !strings.HasPrefix(name, "dispatcher.delay.v2.probe.") {
				levels++
			}
			if name != dispatcher.Undeliverable {
				waiting += messages
			}
		}
		return waiting == 0
	})
	if levels > 48 {
		t.Errorf("%d queues for delays, want at most 48", levels)
	}
	checkStrays(t, r, gone, strays)
	t.Logf("%d tasks published in %.1f s, all arrived after %.1f s, %d of them twice; %d queues; the node was away for %.1f s, the worker for %.1f s", delayedTasks,
		published.Seconds(), all.Seconds(), runs.twice, levels, booted.Sub(killed).Seconds(), back.Sub(killed).Seconds())
	runs.report(t, "due before the kill", time.Time{}, mid)
	runs.report(t, "due around the kill and while the worker was away", mid, back)
	runs.report(t, "due after that", back, began.Add(time.Hour))
}

// publishStrays publishes delayed tasks for a queue that is about to be deleted, and returns their uuids.
func publishStrays(r *rabbit, key string, rng *rand.Rand) map[string]bool {
	r.t.Helper()
	ids, batch := map[string]bool{}, []*dispatcher.Task(nil)
	for i := range strayTasks {
		task := dispatcher.NewTask("stray", i)
		task.UUID, task.RoutingKey = fmt.Sprint("stray-", i), key
		task.Delay = 4*time.Second + time.Duration(rng.Int64N(int64(3*time.Second)))
		ids[task.UUID] = true
		batch = append(batch, task)
	}
	if errs := r.server.PublishBatch(r.t.Context(), batch); errs != nil {
		r.t.Fatal(errors.Join(errs...))
	}
	return ids
}

// checkStrays checks that exactly the strays are undeliverable, and replays them once their queue exists again.
func checkStrays(t *testing.T, r *rabbit, queue string, want map[string]bool) {
	t.Helper()
	dead := r.server.DeadLetters(dispatcher.Undeliverable)
	listed := func() map[string]bool {
		letters, err := dead.List(t.Context(), dispatcher.DeadLetterFilter{}, dispatcher.Page{Limit: 2 * strayTasks})
		if err != nil {
			t.Fatal(err)
		}
		ids := map[string]bool{}
		for _, l := range letters {
			if l.Reason != dispatcher.ReasonUndeliverable || l.Name != "stray" || l.Exchange != r.name || l.RoutingKey != queue || ids[l.UUID] {
				t.Errorf("unexpected letter: %+v", l)
			}
			ids[l.UUID] = true
		}
		return ids
	}
	if got := listed(); !maps.Equal(got, want) {
		t.Errorf("%d undeliverable tasks are listed, want exactly the %d whose queue was deleted", len(got), len(want))
	}
	if n, err := dead.ReplayAll(t.Context()); n != 0 || !errors.Is(err, dispatcher.ErrUnroutable) {
		t.Errorf("Replay without a queue: %d, %v", n, err)
	}
	if got := listed(); !maps.Equal(got, want) {
		t.Errorf("%d are left after a refused replay, want %d", len(got), len(want))
	}
	ran := make(chan string, 2*strayTasks)
	r.sweep(queue+".dead", queue+".suspects")
	r.worker(tasks{"stray": {TaskUUIDAsFirstArg: true, Function: func(uuid string, _ int) { ran <- uuid }}}, func(c *dispatcher.WorkerConfig) {
		c.Name, c.Queue, c.BindingKeys = "strays", queue, []string{queue}
	})
	if n, err := dead.ReplayAll(t.Context()); n != strayTasks || err != nil {
		t.Errorf("Replay: %d, %v", n, err)
	}
	got := map[string]bool{}
	for range strayTasks {
		got[wait(t, ran, "replayed task")] = true
	}
	if !maps.Equal(got, want) {
		t.Errorf("%d different tasks ran after the replay, want %d", len(got), len(want))
	}
	if count, err := dead.Count(t.Context()); count != 0 || err != nil {
		t.Errorf("%d are still undeliverable, %v", count, err)
	}
}

// arrivals records when delayed tasks arrive.
type arrivals struct {
	come chan struct{} // signals that something has arrived

	mu    sync.Mutex
	due   []time.Time // by task
	at    []time.Time // its first arrival; zero = not yet
	early []time.Duration
	count int
	twice int
}

func (a *arrivals) arrive(i int) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if early := a.due[i].Sub(now); early > 0 {
		a.early = append(a.early, early)
	}
	if !a.at[i].IsZero() {
		a.twice++
		return
	}
	a.at[i] = now
	a.count++
	select {
	case a.come <- struct{}{}:
	default:
	}
}

func (a *arrivals) left() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.at) - a.count
}

// overdue counts the tasks that were due before by and have not arrived.
func (a *arrivals) overdue(by time.Time) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, at := range a.at {
		if at.IsZero() && a.due[i].Before(by) {
			n++
		}
	}
	return n
}

// wait waits until all tasks that were due by then have arrived.
func (a *arrivals) wait(t *testing.T, due time.Time) {
	t.Helper()
	eventually(t, "all tasks that are due have arrived", func() bool { return a.overdue(due) == 0 })
}

// report logs how late the tasks due in a span of time arrived. It fails the test if any task was early.
func (a *arrivals) report(t *testing.T, what string, from, to time.Time) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	var late []time.Duration
	for i, at := range a.at {
		if due := a.due[i]; due.After(from) && !due.After(to) {
			late = append(late, at.Sub(due))
		}
	}
	if len(a.early) > 0 {
		t.Errorf("%d tasks arrived early, by up to %v", len(a.early), slices.Max(a.early))
	}
	if len(late) == 0 {
		return
	}
	slices.Sort(late)
	at := func(share float64) time.Duration {
		return late[int(share*float64(len(late)-1))].Round(100 * time.Microsecond)
	}
	t.Logf("%s: %d tasks, late by min %v, p50 %v, p99 %v, max %v", what, len(late), at(0), at(0.5), at(0.99), at(1))
}
