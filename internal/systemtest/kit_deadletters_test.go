package systemtest_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// graveyard is a queue with dead letters on a broker, with a server that manages them and direct access to the broker.
type graveyard struct {
	t      *testing.T
	server *dispatcher.Server
	dead   *dispatcher.DeadLetters
	queue  string
	broker broker.Broker // direct, not through the server and its link
	cut    func()        // ends the server's connections, which recover by themselves
	worker func(set tasks, edit ...func(*dispatcher.WorkerConfig)) *dispatcher.Worker
}

// onBothBrokers runs a test on the embedded broker, and on RabbitMQ if there is one.
func onBothBrokers(t *testing.T, test func(*testing.T, *graveyard)) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		test(t, onMemory(t))
	})
	t.Run("rabbitmq", func(t *testing.T) {
		t.Parallel()
		test(t, onRabbitMQ(t))
	})
}

func onMemory(t *testing.T) *graveyard {
	t.Helper()
	mem := memory.New()
	r := newRig(t, func(c *dispatcher.ServerConfig) { c.Broker, c.ReconnectionIntervalSeconds = mem, 0 })
	g := &graveyard{t: t, server: r.server, queue: "jobs", broker: mem, cut: func() { mem.KillSessions() },
		worker: func(set tasks, edit ...func(*dispatcher.WorkerConfig)) *dispatcher.Worker {
			t.Helper()
			return r.worker("w", set, edit...)
		}}
	return g.open()
}

func onRabbitMQ(t *testing.T, edit ...func(*dispatcher.ServerConfig)) *graveyard {
	t.Helper()
	r := newRabbit(t, append(edit, func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds = 0 })...)
	b, err := rabbitmq.New(rabbitmq.Config{URLs: []string{r.url.String()}})
	if err != nil {
		t.Fatal(err)
	}
	g := &graveyard{t: t, server: r.server, queue: r.name, broker: b, cut: r.proxy.Cut, worker: r.worker}
	return g.open(edit...)
}

func (g *graveyard) open(edit ...func(*dispatcher.ServerConfig)) *graveyard {
	g.t.Helper()
	g.dead = g.server.DeadLetters(g.queue)
	var cfg dispatcher.ServerConfig
	for _, f := range edit {
		f(&cfg)
	}
	topology := broker.Topology{Queues: []broker.QueueSpec{{Name: g.queue, Type: cfg.QueueType}, {Name: g.queue + ".dead", Type: cfg.QueueType}}}
	g.with(func(s broker.Session) error { return s.Declare(g.t.Context(), topology) })
	return g
}

// with opens a session that does not go through the server.
func (g *graveyard) with(f func(broker.Session) error) {
	g.t.Helper()
	s, err := g.broker.Open(g.t.Context())
	if err == nil {
		err = f(s)
		_ = s.Close(context.Background())
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

// put publishes messages to a queue, in order.
func (g *graveyard) put(queue string, msgs ...broker.Message) {
	g.t.Helper()
	g.with(func(s broker.Session) error {
		var mu sync.Mutex
		var failed error
		var all sync.WaitGroup
		all.Add(len(msgs))
		for i := range msgs {
			if msgs[i].Exchange == "" {
				msgs[i].RoutingKey = queue
			}
		}
		s.Publish(g.t.Context(), msgs, func(_ int, err error) {
			defer all.Done()
			if err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
		all.Wait()
		return failed
	})
}

// take removes all messages from a queue and returns them.
func (g *graveyard) take(queue string) []broker.Message {
	g.t.Helper()
	var out []broker.Message
	g.with(func(s broker.Session) error {
		for {
			ds, err := s.TryGet(g.t.Context(), queue, 1000)
			if err != nil || len(ds) == 0 {
				return err
			}
			for _, d := range ds {
				out = append(out, d.Message)
				if err := d.Ack(); err != nil {
					return err
				}
			}
		}
	})
	return out
}

func (g *graveyard) ready(queue string) (n int) {
	g.t.Helper()
	g.with(func(s broker.Session) error {
		info, err := s.Inspect(g.t.Context(), queue)
		n = info.Ready
		return err
	})
	return n
}

// settledReady waits until want messages of a queue are ready. Messages that a dead session held take a while to
// return.
func (g *graveyard) settledReady(queue string, want int) {
	g.t.Helper()
	eventually(g.t, fmt.Sprintf("%d messages in %s", want, queue), func() bool { return g.ready(queue) == want })
}

// died returns when dead letter i died.
func died(i int) time.Time { return time.Date(2026, 1, 2, 3, 0, i, 500, time.UTC) }

// letter returns dead letter i as a worker writes it. Every third one is of the task "b", and every fourth is a
// timeout.
func (g *graveyard) letter(i int) broker.Message {
	name, reason := "a", "failed"
	if i%3 == 0 {
		name = "b"
	}
	if i%4 == 0 {
		reason = "timeout"
	}
	id := fmt.Sprintf("u%05d", i)
	return broker.Message{
		ID: id, Type: name, ContentType: "application/json", Timestamp: died(i).Truncate(time.Second),
		Body: fmt.Appendf(nil, `{"uuid":%q,"name":%q,"args":[{"type":"int","value":%d}]}`, id, name, i),
		Headers: map[string]any{
			"tenant": "blue", "list": []any{int64(1), map[string]any{"x": "y"}},
			"x-dispatcher-reason": reason, "x-dispatcher-error": fmt.Sprint("error ", i), "x-dispatcher-attempt": int64(3),
			"x-dispatcher-queue": g.queue, "x-dispatcher-routing-key": "key", "x-dispatcher-worker": "w1",
			"x-dispatcher-died-at": died(i).Format(time.RFC3339Nano), "x-dispatcher-losses": int64(1),
			"x-dispatcher-misses": int64(2), "x-dispatcher-missed-since": died(i).Format(time.RFC3339Nano),
			"x-dispatcher-expires-at": died(i).Format(time.RFC3339Nano),
			"x-dispatcher-log":        `[{"n":1,"at":"2026-01-02T03:04:05.5Z","ms":12,"worker":"w0","error":"first"},{"n":3,"at":"2026-01-02T03:05:05Z","ms":1}]`,
		},
	}
}

// bury publishes n dead letters, numbered from first.
func (g *graveyard) bury(first, n int) {
	g.t.Helper()
	msgs := make([]broker.Message, n)
	for i := range msgs {
		msgs[i] = g.letter(first + i)
	}
	g.put(g.queue+".dead", msgs...)
}

// list returns the numbers of the letters on a page, which it reads from their uuids.
func (g *graveyard) list(filter dispatcher.DeadLetterFilter, page dispatcher.Page) []int {
	g.t.Helper()
	letters, err := g.dead.List(g.t.Context(), filter, page)
	if err != nil {
		g.t.Fatal(err)
	}
	var out []int
	for _, l := range letters {
		out = append(out, number(g.t, l.UUID))
	}
	return out
}

func number(t *testing.T, uuid string) (i int) {
	t.Helper()
	if _, err := fmt.Sscanf(uuid, "u%05d", &i); err != nil {
		t.Fatalf("uuid %q: %v", uuid, err)
	}
	return i
}

// numbers returns the numbers below n that fit.
func numbers(n int, fits func(int) bool) (out []int) {
	for i := range n {
		if fits(i) {
			out = append(out, i)
		}
	}
	return out
}

func same(t *testing.T, what string, got, want []int) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v\nwant %v", what, got, want)
	}
}

type filter = dispatcher.DeadLetterFilter
