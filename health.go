package dispatcher

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Health tells how a server is at one moment.
type Health struct {
	State     State
	Since     time.Time      // when State began
	LastError error          // the last problem of the connection, perhaps overcome; nil if there was none
	Blocked   string         // why the broker blocks publishers, in its words; "" = it does not
	Delays    string         // why delayed tasks and retries may be late; "" = nothing is known to hold them up. See docs/rabbitmq.md
	Outbox    OutboxHealth   // zero without ServerConfig.Outbox
	Workers   []WorkerHealth // sorted by name

	// Undeclared lists, by name, what the server cannot declare now: queues, and perhaps its exchange. It is tried again, and the
	// connection is used meanwhile. Nil if there is nothing.
	Undeclared []Undeclared
	// Channels says why no further worker can be started: the connection has as many consumers as it can have. "" = one can.
	Channels string
	// Unreadable counts, by queue, the messages with unreadable headers that this connection has received. A worker makes each a
	// dead letter with the reason malformed. Nil if there were none.
	Unreadable map[string]int
	// Unanswered is how many published messages the broker has not answered although their callers have stopped waiting. They may
	// be in their queues. OK ignores it, since other queues are not affected.
	Unanswered int
}

// OK reports whether the connection stands, publishing is not blocked, the outbox does not fail, everything is declared, and every started
// worker takes tasks and can settle them. It ignores Delays, Channels, Unreadable and Unanswered: a new process would change nothing.
func (h Health) OK() bool {
	for _, w := range h.Workers {
		if w.Started && (!w.Consuming || w.Stuck > 0) {
			return false
		}
	}
	return h.State == StateConnected && h.Blocked == "" && h.Outbox.Failing == 0 && len(h.Undeclared) == 0
}

// OutboxHealth tells how the outbox is.
type OutboxHealth struct {
	Entries   int   // tasks waiting to be sent; -1 = not known
	Dead      int   // tasks that the broker refused, waiting for a person; -1 = not known
	Failing   int   // routing keys that stand still because the outbox fails: tried again until it does not
	LastError error // the last problem of the outbox, perhaps overcome
}

// WorkerHealth tells how a worker is.
type WorkerHealth struct {
	Name      string
	Queue     string
	Started   bool  // between Start and the end of Close; while draining too
	Consuming bool  // the broker gives it tasks
	Running   int   // calls under way, abandoned ones included
	Abandoned int   // calls that ran on after their timeout and lost their slot
	Stuck     int   // tasks whose retry or dead letter the broker does not take: tried again until it does
	Held      int   // tasks that wait for a running call of the same queue, name and uuid
	Ready     int   // tasks waiting in its queue; -1 = not known
	Dead      int   // its dead letters; -1 = not known
	LastError error // the last problem with consuming or settling, perhaps overcome
}

// Health asks the broker how full the workers' queues are, which also shows that the connection answers, and returns at the
// latest when ctx ends, with what is not known marked so.
func (s *Server) Health(ctx context.Context) Health {
	l, _ := s.sup.now()
	h := Health{State: l.state, Since: l.since, LastError: l.err, Undeclared: s.refused.list()}
	if l.session != nil {
		if reason, blocked := l.session.Blocked(); blocked {
			h.Blocked = cmp.Or(reason, "no reason given")
		}
		status := l.session.Status()
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
	h.Outbox = s.courier.health(ctx)
	slices.SortFunc(h.Workers, func(a, b WorkerHealth) int { return cmp.Compare(a.Name, b.Name) })
	h.count(ctx, l.session)
	return h
}

// maxCounts is how many queues are counted at once: one that does not answer must not hide the counts of others.
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

// ready is how many messages wait in a queue; -1 = not known.
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
	w.mu.Lock()
	sh := w.shift
	w.mu.Unlock()
	if sh == nil {
		return h
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	h.Started, h.Consuming = true, sh.consuming
	h.Running, h.Abandoned, h.Stuck, h.Held, h.LastError = sh.calls, sh.abandoned, sh.stuck, sh.held, sh.err
	return h
}
