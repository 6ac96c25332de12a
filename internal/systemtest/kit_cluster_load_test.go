package systemtest_test

import (
	"context"
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// stamped is a recorder that prefixes each line with the seconds since the server began.
type stamped struct {
	recorder
	began time.Time
}

func (s *stamped) at(args []any) []any {
	return append([]any{fmt.Sprintf("%.2f ", time.Since(s.began).Seconds())}, args...)
}
func (s *stamped) Info(args ...any)             { s.recorder.Info(s.at(args)...) }
func (s *stamped) Infof(f string, args ...any)  { s.recorder.Infof("%s"+f, s.at(args)...) }
func (s *stamped) Debug(args ...any)            { s.recorder.Debug(s.at(args)...) }
func (s *stamped) Debugf(f string, args ...any) { s.recorder.Debugf("%s"+f, s.at(args)...) }
func (s *stamped) Warnf(f string, args ...any)  { s.recorder.Warnf("%s"+f, s.at(args)...) }
func (s *stamped) Error(args ...any)            { s.recorder.Error(s.at(args)...) }
func (s *stamped) Errorf(f string, args ...any) { s.recorder.Errorf("%s"+f, s.at(args)...) }

// load is the work that runs while a cluster is broken and repaired. One server publishes, another publishes with an
// outbox, and two run the tasks. Every task is published once and followed to its end.
type load struct {
	t      *testing.T
	c      *cluster
	name   string // the name of exchange, key and queue
	query  string // the query of the URLs
	kind   string // the type of the queues
	rng    *rand.Rand
	logs   map[string]*stamped // by server, like servers
	outbox *dispatcher.MemoryOutbox

	servers map[string]*dispatcher.Server // every server ever started
	senders sync.WaitGroup
	quit    chan struct{} // closed to end the senders

	replayed int // undeliverable tasks; only audit uses it

	mu    sync.Mutex // guards the fields below
	fates []*fate
	beats map[string][]time.Time // by server: confirmed publishes, starts of tasks
	spans []string               // the gaps that watch measured
	late  map[string]time.Duration
	early []string
	slow  time.Duration // the longest publish
}

// fate describes what happened to one task.
type fate struct {
	name      string
	notBefore time.Time
	told      bool
	err       error
	runs      int
	ended     map[int]time.Time // first end of an attempt that failed
	done      bool
}

// These are the names of the servers.
const (
	sender = "sender"
	boxed  = "sender with outbox"
	first  = "worker 1"
	second = "worker 2"

	delays = ", delayed" // marks the beats of delayed publishes
)

// flaky is the retry policy of the servers. Tasks named "flaky" fail twice.
var flaky = dispatcher.RetryPolicy{MaxAttempts: 5, InitialInterval: 200 * time.Millisecond, Multiplier: 2, Jitter: -1}

// newLoad first connects all servers to m alone, so that m leads all queues. Then it allows connections to the other
// nodes, and starts the work.
func newLoad(t *testing.T, c *cluster, m *member, sc scenario, seed uint64) *load {
	t.Helper()
	if sc.entries == 0 {
		sc.entries = 1 << 20
	}
	l := &load{
		t: t, c: c, name: "test." + cryptorand.Text()[:16], kind: sc.kind, query: sc.query, quit: make(chan struct{}), rng: rand.New(rand.NewPCG(seed, 0)),
		logs: map[string]*stamped{}, servers: map[string]*dispatcher.Server{}, beats: map[string][]time.Time{}, late: map[string]time.Duration{},
		outbox: dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{MaxEntries: sc.entries}),
	}
	t.Cleanup(func() {
		if t.Failed() {
			for name, log := range l.logs {
				t.Logf("log of %s:\n%s", name, log)
			}
		}
	})
	c.only(m)
	l.serve(sender, nil)
	l.serve(boxed, func(cfg *dispatcher.ServerConfig) { cfg.Outbox = l.outbox })
	l.work(first)
	l.work(second)
	l.publish(sender, l.task("later")) // declares the queues of the delay levels
	if sc.kind == "quorum" {
		c.lead(m)
	}
	c.only(nil)
	mix := []string{"now", "now", "flaky", "now", "slow"}
	l.senders.Go(func() { l.send(sender, 20*time.Millisecond, 1, "now") })
	l.senders.Go(func() { l.send(sender, 40*time.Millisecond, 1, mix...) })
	l.senders.Go(func() { l.send(sender, 400*time.Millisecond, 20, mix...) })
	l.senders.Go(func() { l.send(sender, 50*time.Millisecond, 1, "later") })
	l.senders.Go(func() { l.send(boxed, 30*time.Millisecond, 1, mix...) }) // its entries are sent one by one, and must catch up
	l.senders.Go(func() { l.send(boxed, 100*time.Millisecond, 1, "later") })
	return l
}

// serve starts a server named who.
func (l *load) serve(who string, edit func(*dispatcher.ServerConfig)) *dispatcher.Server {
	l.t.Helper()
	l.logs[who] = &stamped{began: time.Now()}
	cfg := &dispatcher.ServerConfig{
		AMQPConnectionString: l.c.urls(l.query), Exchange: l.name, DefaultRoutingKey: l.name, QueueType: l.kind,
		InitQueues:                 []dispatcher.Queue{{Name: l.name, BindingKeys: l.keys()}},
		ReconnectionRetriesForever: true, Logger: l.logs[who], Retry: &flaky,
	}
	cfg.Hooks.Published = func(e dispatcher.PublishEvent) {
		switch {
		case e.Err != nil:
		case e.Name == "later":
			l.beat(who + delays)
		default:
			l.beat(who)
		}
	}
	cfg.Hooks.Started = func(dispatcher.StartEvent) { l.beat(who) }
	if edit != nil {
		edit(cfg)
	}
	s, _, err := dispatcher.NewServer(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(s.Close)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.servers[who] = s
	return s
}

func (l *load) server(who string) *dispatcher.Server {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.servers[who]
}

// work starts a server with a worker.
func (l *load) work(who string) {
	l.t.Helper()
	w, err := l.serve(who, nil).NewWorker(&dispatcher.WorkerConfig{Name: who, Queue: l.name, BindingKeys: l.keys(), Limit: 20}, tasks{
		"now": fn(l.run), "later": fn(l.run), "flaky": fn(l.run), "slow": fn(l.run),
	})
	if err == nil {
		err = w.Start(l.servers[who])
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// keys returns the key of most tasks, and one for delayed tasks. In an outbox, entries with the same key wait for each
// other.
func (l *load) keys() []string { return []string{l.name, l.name + ".later"} }

// leave shuts the server down.
func (l *load) leave(who string) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := l.servers[who].Shutdown(ctx); err != nil {
		l.t.Errorf("%s: %v", who, err)
	}
}

func (l *load) beat(who string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.beats[who] = append(l.beats[who], time.Now())
}

// task returns a new task and records its fate.
func (l *load) task(name string) *dispatcher.Task {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &fate{name: name, ended: map[int]time.Time{}}
	task := dispatcher.NewTask(name, len(l.fates))
	task.UUID = l.id(len(l.fates))
	if name == "later" {
		f.notBefore = time.Now().Add(time.Duration(50+l.rng.IntN(8000)) * time.Millisecond)
		task.NotBefore, task.RoutingKey = f.notBefore, l.keys()[1]
	}
	l.fates = append(l.fates, f)
	return task
}

// publish publishes tasks once and records the outcomes.
func (l *load) publish(who string, batch ...*dispatcher.Task) {
	began := time.Now()
	var errs []error
	if len(batch) == 1 {
		errs = []error{l.server(who).PublishContext(context.Background(), batch[0])}
	} else {
		errs = l.server(who).PublishBatch(context.Background(), batch)
	}
	took := time.Since(began)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slow = max(l.slow, took)
	for i, task := range batch {
		f := l.fates[task.Args[0].Value.(int)]
		f.told = true
		if errs != nil {
			f.err = errs[i]
		}
	}
}

// send publishes batches of size tasks with these names until the load is stopped.
func (l *load) send(who string, every time.Duration, size int, names ...string) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 0; ; {
		batch := make([]*dispatcher.Task, size)
		for i := range batch {
			batch[i] = l.task(names[n%len(names)])
			n++
		}
		l.publish(who, batch...)
		select {
		case <-l.quit:
			return
		case <-tick.C:
		}
	}
}

// run is the task function of all tasks.
func (l *load) run(ctx context.Context, i int) error {
	info, _ := dispatcher.TaskFromContext(ctx)
	now := time.Now()
	l.mu.Lock()
	f := l.fates[i]
	f.runs++
	due := f.notBefore
	if info.Attempt > 1 {
		pause := flaky.InitialInterval << (info.Attempt - 2)
		due = f.ended[info.Attempt-1].Add(pause)
	}
	if now.Before(due) {
		l.early = append(l.early, fmt.Sprintf("%s %d, attempt %d: %v early", f.name, i, info.Attempt, due.Sub(now)))
	}
	if boxed := errors.Is(f.err, dispatcher.ErrInOutbox); !due.IsZero() && f.ended[info.Attempt].IsZero() && !f.done && (info.Attempt > 1 || !boxed) {
		l.late[f.name] = max(l.late[f.name], now.Sub(due))
	}
	l.mu.Unlock()
	if f.name == "slow" {
		pause(ctx, 500*time.Millisecond)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.name == "flaky" && info.Attempt < 3 {
		if f.ended[info.Attempt].IsZero() {
			f.ended[info.Attempt] = time.Now()
		}
		return errors.New("on purpose")
	}
	f.done = true
	return nil
}

// watch waits for d and records, for each server, the longest time without a confirmed publish or the start of a task.
// With -cluster.full, none may be longer than bound. A bound of 0 means no limit.
func (l *load) watch(what string, d, bound time.Duration) {
	l.t.Helper()
	from := time.Now()
	pause(l.t.Context(), d)
	l.since(what, from, bound)
}

// since does the same as watch, for the time since from.
func (l *load) since(what string, from time.Time, bound time.Duration) {
	l.t.Helper()
	to := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	span := what + ":"
	for _, who := range []string{sender, sender + delays, boxed, boxed + delays, first, second} {
		gap, last := time.Duration(0), from
		for _, at := range append(slices.Clone(l.beats[who]), to) {
			if at.After(last) {
				gap, last = max(gap, at.Sub(last)), at
			}
		}
		span += fmt.Sprintf(" %s %.2f s,", who, gap.Seconds())
		most := bound
		if strings.HasSuffix(who, delays) { // the first delay of a connection declares all levels
			most += promised
		}
		if *clusterFull && bound > 0 && gap > most {
			l.t.Errorf("%s: %s made no progress for %v", what, who, gap)
		}
	}
	l.spans = append(l.spans, span[:len(span)-1])
}

// stop ends the senders. It returns when each has the answer to its last publish.
func (l *load) stop() {
	close(l.quit)
	l.senders.Wait()
}
