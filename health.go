package dispatcher

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/text"
)

// Health describes a server at one moment. As JSON it has the names of the tags and "ok", which is OK. Errors are their
// texts, times are RFC 3339, and an absent name had no value. It is for reading: unmarshalling it is not supported.
type Health struct {
	State State     `json:"state"`
	Since time.Time `json:"since"` // when State began

	// The last problem of the connection, perhaps overcome; nil if there was none.
	LastError   error     `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"` // when that was; zero if there was none

	Blocked string `json:"blocked,omitempty"` // the broker's reason for blocking publishers; "" = it does not
	// Why delayed tasks and retries may be late; "" = no known reason. See docs/rabbitmq.md.
	Delays string `json:"delays,omitempty"`

	Outbox  OutboxHealth   `json:"outbox"`  // zero without ServerConfig.Outbox
	Workers []WorkerHealth `json:"workers"` // sorted by name

	// Undeclared lists, by name, the queues that the server cannot declare now, and perhaps its exchange. They are
	// tried again, and the connection is used meanwhile. Nil if there are none.
	Undeclared []Undeclared `json:"undeclared,omitempty"`
	// Channels says why no further worker can be started: the connection has as many consumers as it can have. "": one
	// can be started. Suspects can be fetched nevertheless, unless WorkerHealth.Suspects says otherwise.
	Channels string `json:"channels,omitempty"`
	// Unreadable counts, by queue, the messages with unreadable headers that this connection has received. A worker
	// makes each a dead letter with the reason malformed. Nil if there were none.
	Unreadable map[string]int `json:"unreadable,omitempty"`
	// Unanswered is how many published messages the broker has not answered although their callers have stopped
	// waiting. They may be in their queues. OK ignores it, since other queues are not affected.
	Unanswered int `json:"unanswered"`
}

// OK reports whether the connection stands, publishing is not blocked, the outbox does not fail, everything is
// declared, and every started worker takes tasks, can settle them and can fetch suspects. It ignores Delays, Channels,
// Unreadable and Unanswered: restarting the program would not improve them.
func (h Health) OK() bool {
	for _, w := range h.Workers {
		if w.Started && (!w.Consuming || w.Stuck > 0 || w.Suspects != "") {
			return false
		}
	}
	return h.State == StateConnected && h.Blocked == "" && h.Outbox.Failing == 0 && len(h.Undeclared) == 0
}

// MarshalJSON implements [json.Marshaler].
func (h Health) MarshalJSON() ([]byte, error) {
	type plain Health
	if h.Workers == nil {
		h.Workers = []WorkerHealth{}
	}
	return json.Marshal(struct {
		OK bool `json:"ok"`
		plain
		LastError string `json:"last_error,omitempty"` // in place of plain's
	}{h.OK(), plain(h), healthText(h.LastError)})
}

// OutboxHealth describes the outbox.
type OutboxHealth struct {
	Entries int `json:"entries"` // tasks waiting to be sent; -1 = not known
	Dead    int `json:"dead"`    // tasks that the broker refused, waiting for a person; -1 = not known
	Failing int `json:"failing"` // routing keys that are held up because the outbox fails: tried again until it works

	LastError   error     `json:"last_error,omitempty"`   // the last problem of the outbox, perhaps overcome
	LastErrorAt time.Time `json:"last_error_at,omitzero"` // when that was
}

// MarshalJSON implements [json.Marshaler].
func (h OutboxHealth) MarshalJSON() ([]byte, error) {
	type plain OutboxHealth
	return json.Marshal(struct {
		plain
		LastError string `json:"last_error,omitempty"`
	}{plain(h), healthText(h.LastError)})
}

// WorkerHealth describes a worker.
type WorkerHealth struct {
	Name      string `json:"name"`
	Queue     string `json:"queue"`
	Started   bool   `json:"started"`   // between Start and the end of Close; while draining too
	Consuming bool   `json:"consuming"` // the broker gives it tasks
	Running   int    `json:"running"`   // calls under way, abandoned ones included
	Abandoned int    `json:"abandoned"` // calls that ran on after their timeout and lost their slot
	// Tasks whose retry or dead letter the broker does not take: tried again until it does.
	Stuck int `json:"stuck"`
	Held  int `json:"held"` // tasks that wait for a running call of the same queue, name and uuid
	// The most tasks that the broker hands out now before one is settled: see WorkerConfig.Prefetch. 0 = it does not
	// consume.
	Prefetch int `json:"prefetch"`
	// Why the suspects of its queue cannot be fetched, tried again about every 15 s; "" = they can.
	Suspects string `json:"suspects,omitempty"`
	Ready    int    `json:"ready"` // tasks waiting in its queue; -1 = not known
	Dead     int    `json:"dead"`  // its dead letters, without those that another call is reading; -1 = not known

	// The last problem with consuming, settling or suspects, perhaps overcome.
	LastError   error     `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"` // when that was
}

// MarshalJSON implements [json.Marshaler].
func (h WorkerHealth) MarshalJSON() ([]byte, error) {
	type plain WorkerHealth
	return json.Marshal(struct {
		plain
		LastError string `json:"last_error,omitempty"`
	}{plain(h), healthText(h.LastError)})
}

// healthText returns the text of an error in JSON; "" for nil.
func healthText(err error) string {
	if err == nil {
		return ""
	}
	return text.OfError(err)
}

// Health describes the server and returns at the latest when ctx ends, with unknown values marked as not known. It asks
// the broker how full the workers' queues are, which also shows that the connection answers. Without a worker it asks
// nothing. A silent broker is then noticed only after about 20 s, when the connection counts as lost.
func (s *Server) Health(ctx context.Context) Health {
	l, _ := s.sup.Now()
	h := Health{State: State(l.State), Since: l.Since, LastError: l.Err, LastErrorAt: l.ErrAt}
	for _, u := range s.declarer.List() {
		h.Undeclared = append(h.Undeclared, Undeclared(u))
	}
	if l.Session != nil {
		if reason, blocked := l.Session.Blocked(); blocked {
			h.Blocked = cmp.Or(reason, "no reason given")
		}
		status := l.Session.Status()
		h.Delays, h.Channels, h.Unreadable = status.Delays, status.Channels, status.Unreadable
		h.Unanswered = status.Unanswered
	}
	s.mu.Lock()
	for _, w := range s.workers {
		if w != nil {
			h.Workers = append(h.Workers, w.health())
		}
	}
	s.mu.Unlock()
	h.Outbox = OutboxHealth(s.courier.Health(ctx))
	slices.SortFunc(h.Workers, func(a, b WorkerHealth) int { return cmp.Compare(a.Name, b.Name) })
	h.count(ctx, l.Session)
	return h
}

// maxCounts is how many queues are counted at once. There are several, so that a queue that does not answer does not
// hide the counts of others.
const maxCounts = 16

// count asks the broker how full the workers' queues are.
func (h *Health) count(ctx context.Context, session broker.Session) {
	var wg sync.WaitGroup
	places := make(chan struct{}, maxCounts)
	count := func(to *int, queue string) {
		*to = -1
		select {
		case places <- struct{}{}:
			wg.Go(func() {
				defer func() { <-places }()
				*to = ready(ctx, session, queue)
			})
		case <-ctx.Done():
		}
	}
	for i := range h.Workers {
		w := &h.Workers[i]
		count(&w.Ready, w.Queue)
		count(&w.Dead, w.Queue+broker.DeadSuffix)
	}
	wg.Wait()
}

// ready returns how many messages wait in a queue; -1 = not known.
func ready(ctx context.Context, session broker.Session, queue string) int {
	if session == nil {
		return -1
	}
	info, err := session.Inspect(ctx, queue)
	if err != nil {
		return -1
	}
	return info.Ready
}

func (w *Worker) health() WorkerHealth {
	h := WorkerHealth{Name: w.cfg.Name, Queue: w.cfg.Queue}
	sh := w.current()
	if sh == nil {
		return h
	}
	now := sh.State()
	h.Started, h.Consuming = true, now.Consuming
	h.Running, h.Abandoned, h.Stuck, h.Held = now.Running, now.Abandoned, now.Stuck, now.Held
	h.Prefetch = now.Prefetch
	h.LastError, h.LastErrorAt = now.Err, now.ErrAt
	if now.Barred != nil {
		h.Suspects = now.Barred.Error()
	}
	return h
}
