package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

func TestAReplayedTaskHasNoPast(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, g *graveyard) {
		g.bury(0, 3)
		if n, err := g.dead.Replay(t.Context(), filter{UUID: "u00001"}); n != 1 || err != nil {
			t.Fatalf("%d replayed: %v", n, err)
		}
		if n := g.server.Stats().Replayed; n != 1 {
			t.Errorf("Stats.Replayed is %d, want 1", n)
		}
		got, want := g.take(g.queue), g.letter(1)
		if len(got) != 1 {
			t.Fatalf("%d messages", len(got))
		}
		m := got[0]
		if m.ID != want.ID || m.Type != want.Type || string(m.Body) != string(want.Body) || m.ContentType != want.ContentType || !m.Timestamp.Equal(want.Timestamp) {
			t.Errorf("message %+v", m)
		}
		if len(m.Headers) != 3 || m.Headers["tenant"] != "blue" || fmt.Sprint(m.Headers["list"]) != "[1 map[x:y]]" || m.Headers["x-dispatcher-routing-key"] != "key" {
			t.Errorf("headers %v", m.Headers)
		}
		same(t, "the others", g.list(filter{}, dispatcher.Page{}), []int{0, 2})
	})
}

// A replay goes only to the task's queue. Another queue bound to the same key has already had the task and run it.
func TestAReplayGoesToItsQueueAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var other atomic.Int32
	ran := make(chan string, 2)
	fail := atomic.Bool{}
	fail.Store(true)
	r.worker("w", tasks{"x": {TaskUUIDAsFirstArg: true, Function: func(uuid string) error {
		ran <- uuid
		if fail.Load() {
			return errors.New("no")
		}
		return nil
	}}})
	r.worker("o", tasks{"x": fn(func() { other.Add(1) })}, func(c *dispatcher.WorkerConfig) { c.Queue = "other" })
	task := r.publish("x")
	wait(t, ran, "the first run")
	d := r.server.DeadLetters("jobs")
	eventually(t, "there is a dead letter", func() bool { n, err := d.Count(t.Context()); return n == 1 && err == nil })
	fail.Store(false)
	if n, err := d.ReplayAll(t.Context()); n != 1 || err != nil {
		t.Errorf("%d replayed: %v", n, err)
	}
	if uuid := wait(t, ran, "the second run"); uuid != task.UUID {
		t.Errorf("uuid %q, was %q", uuid, task.UUID)
	}
	eventually(t, "all tasks are settled", func() bool { return r.outstanding("jobs")+r.outstanding("other")+r.outstanding("jobs.dead") == 0 })
	if n := other.Load(); n != 1 {
		t.Errorf("the other queue's worker ran it %d times", n)
	}
}

// A replayed task that fails again becomes a dead letter again. The replay still ends.
func TestAReplayOfTasksThatDieAgainEnds(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, g *graveyard) {
		const n = 500
		g.bury(0, n)
		var runs atomic.Int32
		fails := fn(func(int) error { runs.Add(1); return errors.New("again") })
		g.worker(tasks{"a": fails, "b": fails}, limit(20))
		if replayed, err := g.dead.ReplayAll(t.Context()); replayed != n || err != nil {
			t.Errorf("%d replayed: %v", replayed, err)
		}
		g.settledReady(g.queue+".dead", n)
		if got := runs.Load(); got != n {
			t.Errorf("%d runs, want one for each task", got)
		}
		// Two concurrent replays see letters that the other one has replayed and that died again.
		var total atomic.Int32
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() {
				replayed, err := g.dead.ReplayAll(t.Context())
				if err != nil {
					t.Error(err)
				}
				total.Add(int32(replayed))
			})
		}
		both.Wait()
		g.settledReady(g.queue+".dead", n)
		if got := total.Load(); got < n || got > 2*n {
			t.Errorf("two concurrent replays replayed %d", got)
		}
	})
}

func TestReplaysSideBySideNeitherLoseNorDouble(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, g *graveyard) {
		const n = 2000
		g.bury(0, n)
		var total atomic.Int32
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				replayed, err := g.dead.ReplayAll(t.Context())
				if err != nil {
					t.Error(err)
				}
				total.Add(int32(replayed))
			})
		}
		all.Go(func() { _, _ = g.dead.List(t.Context(), filter{Name: "b"}, dispatcher.Page{Skip: 100}) })
		all.Wait()
		rest, err := g.dead.ReplayAll(t.Context()) // letters that List had borrowed when the replays ended
		if err != nil {
			t.Fatal(err)
		}
		if got := int(total.Load()) + rest; got != n {
			t.Errorf("%d replayed, want %d", got, n)
		}
		seen := make([]int, n)
		for _, m := range g.take(g.queue) {
			seen[number(t, m.ID)]++
		}
		for i, times := range seen {
			if times != 1 {
				t.Fatalf("letter %d was replayed %d times", i, times)
			}
		}
	})
}

func TestAReplayByFilterLeavesTheOthersInTheirOrder(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, g *graveyard) {
		const n = 2000
		g.bury(0, n)
		began := time.Now()
		replayed, err := g.dead.Replay(t.Context(), filter{Name: "b"})
		if replayed != 667 || err != nil {
			t.Errorf("%d replayed: %v", replayed, err)
		}
		t.Logf("%d of %d in %v", replayed, n, time.Since(began))
		var got []int
		for _, m := range g.take(g.queue) {
			got = append(got, number(t, m.ID))
		}
		same(t, "replayed", got, numbers(n, func(i int) bool { return i%3 == 0 }))
		got = nil
		for _, m := range g.take(g.queue + ".dead") {
			got = append(got, number(t, m.ID))
		}
		same(t, "left", got, numbers(n, func(i int) bool { return i%3 != 0 }))
	})
}

func TestAReplayToADeletedQueueKeepsTheLetters(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, g *graveyard) {
		g.bury(0, 20)
		g.with(func(s broker.Session) error { return s.Delete(t.Context(), g.queue) })
		n, err := g.dead.ReplayAll(t.Context())
		if n != 0 || !errors.Is(err, dispatcher.ErrUnroutable) || !strings.Contains(err.Error(), g.queue) {
			t.Errorf("%d replayed: %v", n, err)
		}
		outcome(t, "replay", err, dispatcher.ErrUnroutable)
		same(t, "letters", g.list(filter{}, dispatcher.Page{}), numbers(20, func(int) bool { return true }))
	})
}

// nothingLost checks that every letter is in its queue, among the dead letters, or in both. It returns how many are in
// both.
func (g *graveyard) nothingLost(n int) (twice int) {
	g.t.Helper()
	seen := make([]int, n)
	for _, queue := range []string{g.queue, g.queue + ".dead"} {
		for _, m := range g.take(queue) {
			seen[number(g.t, m.ID)]++
		}
	}
	for i, times := range seen {
		if times == 0 {
			g.t.Errorf("letter %d is lost", i)
		}
		if times > 1 {
			twice++
		}
	}
	return twice
}

func TestAReplayThatIsInterruptedLosesNothing(t *testing.T) {
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with: go test -race -run '^%s$' -chaos.seed %d ./internal/systemtest", t.Name(), seed)
	for what, interrupt := range map[string]func(*graveyard, context.CancelFunc){
		"ctx ends": func(_ *graveyard, cancel context.CancelFunc) { cancel() },
		"link cut": func(g *graveyard, _ context.CancelFunc) { g.cut() },
	} {
		t.Run(what, func(t *testing.T) {
			onBothBrokers(t, func(t *testing.T, g *graveyard) {
				const n, wanted, most = 300, 5, 50
				rng := rand.New(rand.NewPCG(seed, 0))
				var rounds, failed, certain int
				took := time.Hour // of the last replay that was not interrupted
				for ; failed < wanted && rounds < most; rounds++ {
					g.bury(rounds*n, n)
					eventually(t, "the server is connected", func() bool { _, err := g.dead.Count(t.Context()); return err == nil })
					ctx, cancel := context.WithCancel(t.Context())
					at := time.Duration(rng.Int64N(int64(took)))
					interrupted := make(chan struct{})
					timer := time.AfterFunc(at, func() { interrupt(g, cancel); close(interrupted) })
					began := time.Now()
					replayed, err := g.dead.ReplayAll(ctx)
					if timer.Stop() {
						took = max(time.Since(began), time.Microsecond)
					} else {
						<-interrupted
					}
					cancel()
					certain += replayed
					if err != nil {
						failed++
						t.Logf("after %v: %v", at, err)
					}
				}
				if failed < wanted {
					t.Errorf("%d of %d replays were interrupted, want %d", failed, rounds, wanted)
				}
				letters := rounds * n
				// The letters that dead sessions held return when the broker notices that the sessions are dead.
				eventually(t, "a replay runs to its end", func() bool {
					replayed, err := g.dead.ReplayAll(t.Context())
					certain += replayed
					return err == nil && replayed == 0 && g.ready(g.queue)+g.ready(g.queue+".dead") >= letters
				})
				twice := g.nothingLost(letters)
				t.Logf("%d of %d replays were interrupted; %d letters, %d certainly replayed, %d both replayed and kept", failed, rounds, letters, certain, twice)
			})
		})
	}
}

// The replay is interrupted after the broker has the copies and before their confirmations arrive.
func TestAReplayWithoutAnswerSaysThatItMayBeTwice(t *testing.T) {
	t.Parallel()
	for what, interrupt := range map[string]func(*rig, context.CancelFunc){
		"ctx ends": func(_ *rig, cancel context.CancelFunc) { cancel() },
		"link cut": func(r *rig, _ context.CancelFunc) { r.chaos.Kill() },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				w := r.worker("w", tasks{"x": fn(func() error { return errors.New("no") })})
				for range 3 {
					r.publish("x")
				}
				synctest.Wait()
				w.Close()
				d := r.server.DeadLetters("jobs")
				r.chaos.HoldConfirms(true)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() {
					synctest.Wait()
					interrupt(r, cancel)
				}()
				n, err := d.ReplayAll(ctx)
				outcome(t, "replay", err, dispatcher.ErrUnconfirmed)
				if n != 0 || !strings.Contains(err.Error(), "3 possibly replayed and still kept") {
					t.Errorf("%d replayed: %v", n, err)
				}
				r.chaos.HoldConfirms(false)
				<-time.After(time.Minute)
				if tasks, letters := r.inspect("jobs").Ready, r.inspect("jobs.dead").Ready; tasks != 3 || letters != 3 {
					t.Errorf("%d tasks, %d letters: want 3 and 3, since no confirm arrived in time", tasks, letters)
				}
			})
		})
	}
}

func TestAReplayWhileTheBrokerBlocksEndsInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *dispatcher.ServerConfig) { c.PublishTimeout = 5 * time.Second })
		r.worker("w", tasks{"x": fn(func() error { return errors.New("no") })})
		for range 10 {
			r.publish("x")
		}
		synctest.Wait()
		r.chaos.Block(true)
		d := r.server.DeadLetters("jobs")
		if letters, err := d.List(t.Context(), filter{}, dispatcher.Page{}); len(letters) != 10 || err != nil {
			t.Errorf("List must work while the broker blocks: %d, %v", len(letters), err)
		}
		began := time.Now()
		n, err := d.ReplayAll(t.Context())
		outcome(t, "replay", err, dispatcher.ErrNotSent)
		if took := time.Since(began); n != 0 || took != 5*time.Second {
			t.Errorf("%d replayed in %v", n, took)
		}
		r.chaos.Block(false)
		if n, err := d.Count(t.Context()); n != 10 || err != nil {
			t.Errorf("%d letters: %v", n, err)
		}
	})
}

func TestALetterThatDiedSinceTheReplayBeganIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.worker("w", tasks{}).Close()
		for i := range 10 {
			m := broker.Message{ID: fmt.Sprintf("u%05d", i), Body: []byte("x"), Headers: map[string]any{}}
			if i == 8 { // it dies while the first ones are in flight
				m.Headers["x-dispatcher-died-at"] = time.Now().Add(time.Second).Format(time.RFC3339Nano)
			}
			r.publishRaw("jobs.dead", m)
		}
		r.chaos.HoldConfirms(true)
		go func() {
			<-time.After(2 * time.Second)
			r.chaos.HoldConfirms(false)
		}()
		d := r.server.DeadLetters("jobs")
		if n, err := d.ReplayAll(t.Context()); n != 9 || err != nil {
			t.Errorf("%d replayed: %v", n, err)
		}
		if _, err := d.Get(t.Context(), "u00008"); err != nil {
			t.Error(err)
		}
	})
}

// If a worker's clock is fast, its dead letters must still be replayed.
func TestALetterThatDiedInTheFutureIsReplayed(t *testing.T) {
	t.Parallel()
	g := onMemory(t)
	m := g.letter(0)
	m.Headers["x-dispatcher-died-at"] = time.Now().Add(time.Hour).Format(time.RFC3339)
	g.put("jobs.dead", m)
	if n, err := g.dead.ReplayAll(t.Context()); n != 1 || err != nil {
		t.Errorf("%d replayed: %v", n, err)
	}
}

func TestManyDeadLettersAreReplayedInSeconds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	onBothBrokers(t, func(t *testing.T, g *graveyard) {
		const n = 10_000
		g.bury(0, n)
		began := time.Now()
		if replayed, err := g.dead.ReplayAll(t.Context()); replayed != n || err != nil {
			t.Errorf("%d replayed: %v", replayed, err)
		}
		t.Logf("%d letters in %v", n, time.Since(began))
		if got := g.ready(g.queue); got != n {
			t.Errorf("%d tasks in their queue", got)
		}
	})
}

// A quorum queue handles acks and requeued messages differently from a classic queue.
func TestQuorumQueuesKeepTheirDeadLettersInOrder(t *testing.T) {
	t.Parallel()
	g := onRabbitMQ(t, func(c *dispatcher.ServerConfig) { c.QueueType = "quorum" })
	const n = 600
	g.bury(0, n)
	g.settledReady(g.queue+".dead", n)
	for range 3 {
		same(t, "list", g.list(filter{}, dispatcher.Page{Limit: 1000}), numbers(n, func(int) bool { return true }))
	}
	if replayed, err := g.dead.Replay(t.Context(), filter{Name: "b"}); replayed != 200 || err != nil {
		t.Errorf("%d replayed: %v", replayed, err)
	}
	rest := numbers(n, func(i int) bool { return i%3 != 0 })
	same(t, "after the replay", g.list(filter{}, dispatcher.Page{Limit: 1000}), rest)
	if deleted, err := g.dead.Delete(t.Context(), filter{Reason: dispatcher.ReasonTimeout}); deleted != 100 || err != nil {
		t.Errorf("%d deleted: %v", deleted, err)
	}
	rest = slices.DeleteFunc(rest, func(i int) bool { return i%4 == 0 })
	same(t, "after the delete", g.list(filter{}, dispatcher.Page{Limit: 1000}), rest)
	g.settledReady(g.queue, 200)
}
