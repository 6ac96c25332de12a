package systemtest_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// A lost link looks like a crash, so every task that the worker held becomes suspect. Fifty lost links in a row must
// not turn one innocent task into a dead letter.
func TestInnocentTasksSurviveFiftyCutLinks(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		const held, cuts = 500, 50
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		var mu sync.Mutex
		ran := map[int]bool{}
		// serve starts a server and a worker, as a new process would. f is the task function.
		serve := func(f any) *dispatcher.Server {
			s := v.server(func(c *dispatcher.ServerConfig) { c.Logger = &recorder{} })
			v.worker(s, "w", tasks{"n": fn(f)}, limit(held))
			return s
		}
		for i := range cuts {
			entered := make(chan struct{}, held)
			s := serve(func(ctx context.Context, _ int) { entered <- struct{}{}; <-ctx.Done() })
			if i == 0 {
				var batch []*dispatcher.Task
				for n := range held {
					batch = append(batch, dispatcher.NewTask("n", n))
				}
				if errs := s.PublishBatch(v.t.Context(), batch); errs != nil {
					v.t.Fatal(errs[0])
				}
			}
			calls := 1 // once all tasks are suspects, each runs alone
			if i < 2 {
				calls = held
			}
			for range calls {
				wait(v.t, entered, fmt.Sprintf("call before cut %d", i+1))
			}
			v.kill()
			_ = s.Shutdown(ended)
		}
		s := serve(func(n int) { mu.Lock(); ran[n] = true; mu.Unlock() })
		eventuallyWithin(v.t, 3*patience, "all tasks have run", func() bool { mu.Lock(); defer mu.Unlock(); return len(ran) == held })
		v.empty(v.name)
		v.empty(v.name + ".suspects")
		if st := s.Stats(); st.DeadLettered != 0 || s.Health(v.t.Context()).Workers[0].Dead != 0 {
			v.t.Errorf("innocent tasks became dead letters; stats %+v", st)
		}
	})
}

// crashKills is how many times the test kills a worker process at a random moment.
const crashKills = 50

// Every task runs to its verdict even if its worker processes are killed. A task that kills its own process is detected
// and becomes a dead letter.
func TestTasksOutliveWorkersThatAreKilled(t *testing.T) {
	if order := os.Getenv(chaosWorkerVar); order != "" {
		workerMain(t, order, tasks{
			"kills": fn(func() error { fmt.Println("ran -1"); return syscall.Kill(os.Getpid(), syscall.SIGKILL) }),
			"count": fn(func(ctx context.Context, n int) error {
				info, _ := dispatcher.TaskFromContext(ctx)
				if n%10 == 0 && info.Attempt == 1 {
					return fmt.Errorf("task %d fails at first", n)
				}
				pause(ctx, 15*time.Millisecond)
				_, err := fmt.Printf("ran %d\n", n)
				return err
			}),
		})
		return
	}
	t.Parallel()
	r := newRabbit(t, func(c *dispatcher.ServerConfig) { c.Logger = nil })
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with: go test -race -run '^%s$' -chaos.seed %d ./internal/systemtest", t.Name(), seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	ctx, cancel := context.WithTimeout(t.Context(), chaosBound)
	defer cancel()

	const total = 3500 // enough tasks to keep the workers busy until the last kill
	r.newWorker(nil)   // declares the queues
	killer := r.publish("kills")
	var batch []*dispatcher.Task
	for n := range total {
		batch = append(batch, dispatcher.NewTask("count", n))
	}
	if errs := r.server.PublishBatch(ctx, batch); errs != nil {
		t.Fatal(errs)
	}

	runs := newRunCount(total)
	var suicides atomic.Int32
	ran := func(n int) {
		if n < 0 {
			suicides.Add(1)
			return
		}
		runs.ran(n)
	}
	order := chaosOrder{URL: r.url.String(), Name: r.name, Limit: 4}
	kills := 0
	began := time.Now()
	for kills < crashKills {
		w := startWorker(t, ctx, order, ran)
		select {
		case <-w.ready:
		case <-w.ended: // the killer task ended it before it was ready
		case <-ctx.Done():
			t.Fatal("the worker did not get ready in time")
		}
		moment := time.NewTimer(time.Duration(20+rng.IntN(280)) * time.Millisecond)
		select {
		case <-moment.C:
			_ = w.cmd.Process.Signal(syscall.SIGKILL)
			kills++
		case <-w.ended:
		}
		_ = w.wait()
	}
	killed := time.Since(began)
	for all := false; !all; { // the killer task may run a few more times
		w := startWorker(t, ctx, order, ran)
		select {
		case <-w.ended:
		case <-ctx.Done():
			t.Fatalf("%d of %d tasks did not run: %v; %s", runs.missing(), total, runs.idle(), r.whereabouts())
		case <-runs.all:
			if n, _ := r.count(r.name + ".dead"); n == 0 {
				<-w.ended
				continue
			}
			r.queueIs(r.name, 0)
			r.queueIs(r.name+".suspects", 0)
			all = true
			w.stop()
		}
	}
	d := r.dead("crash_loop")
	if d.MessageId != killer.UUID {
		t.Errorf("dead letter %s, want the killer %s", d.MessageId, killer.UUID)
	}
	// The killer may have two dead letters, if a process was killed between the confirmation and the ack.
	if n, _ := r.count(r.name + ".dead"); n != 0 {
		for _, d := range r.take(r.name+".dead", n) {
			if d.MessageId != killer.UUID {
				t.Errorf("unexpected dead letter: %s %s %v", d.MessageId, d.Body, d.Headers)
			}
		}
	}
	// Two losses make the task a suspect, and three more end it. Losses that coincide with one of this test's kills
	// count too.
	if n := suicides.Load(); n < 2 || n > 10 {
		t.Errorf("the killer task ended %d processes, want 2 to 10", n)
	}
	executions, twice := runs.count()
	t.Logf("%d processes killed in %.1f s, %d ended by the task itself: %d tasks, %d executions, %d ran more than once",
		kills, killed.Seconds(), suicides.Load(), total, executions, twice)
}

// whereabouts lists how many messages and consumers each queue has, and the dead letters.
func (r *rabbit) whereabouts() string {
	text := ""
	for _, q := range []string{r.name, r.name + ".suspects", r.name + ".dead", dispatcher.Undeliverable} {
		ready, consumers := r.count(q)
		text += fmt.Sprintf("%s: %d ready, %d consumers; ", q, ready, consumers)
	}
	if n, _ := r.count(r.name + ".dead"); n > 0 {
		for _, d := range r.take(r.name+".dead", n) {
			text += fmt.Sprintf("dead letter %s %v; ", d.Body, d.Headers)
		}
	}
	return text
}
