package memory

import (
	"context"
	"fmt"
	"strings"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Content describes what a [Broker] holds at one moment. A message in two queues counts twice.
type Content struct {
	Queues  map[string]broker.QueueInfo // every queue that exists, empty ones included
	Delayed int                         // messages that are not due yet: they are in no queue
	Dead    int                         // messages that wait for a person: in queues named <queue>.dead and in broker.Undeliverable
	Total   int                         // all messages, Delayed and Dead included
}

// Pending returns how many messages are still to be worked on: all but the dead ones.
func (c Content) Pending() int { return c.Total - c.Dead }

// Content returns what the broker holds. It does not block; it takes a step for every queue.
func (b *Broker) Content() Content {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := Content{Queues: make(map[string]broker.QueueInfo, len(b.queues)), Delayed: len(b.delays), Total: len(b.delays)}
	for name, q := range b.queues {
		c.Queues[name] = q.info()
		n := q.ready() + q.unsettled
		c.Total += n
		if q.dead() {
			c.Dead += n
		}
	}
	return c
}

// Drain waits until nothing is left to be worked on: [Content.Pending] is 0. Ready, unsettled and delayed messages are waited for, also
// those that nobody consumes; dead ones are not. Drain takes nothing itself and refuses nothing: messages that are published meanwhile
// are waited for as well. It does not know of tasks in an outbox.
//
// If ctx ends first, the error Is ctx's and says how much is left. Several calls at once are safe.
func (b *Broker) Drain(ctx context.Context) error {
	for {
		b.mu.Lock()
		pending, emptied := b.pending(), b.watch()
		b.mu.Unlock()
		if !pending {
			return nil
		}
		select {
		case <-emptied:
		case <-ctx.Done():
			c := b.Content()
			if c.Pending() == 0 { // in the same moment
				return nil
			}
			return fmt.Errorf("drain: %d messages are left, %d of them delayed: %w", c.Pending(), c.Delayed, ctx.Err())
		}
	}
}

// Emptied returns a channel that is closed when a queue becomes empty or is deleted, or when the last delayed message is due: for callers
// that wait for another state than Drain does. Take the channel first and look at [Broker.Content] afterwards, so that no change is missed.
// The next change has another channel. It does not block.
func (b *Broker) Emptied() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.watch()
}

// pending is called with mu locked. It reports whether anything is left to be worked on.
func (b *Broker) pending() bool {
	if len(b.delays) > 0 {
		return true
	}
	for _, q := range b.queues {
		if !q.empty() && !q.dead() {
			return true
		}
	}
	return false
}

// watch is called with mu locked. The channel is closed when pending may have become false.
func (b *Broker) watch() <-chan struct{} {
	if b.emptied == nil {
		b.emptied = make(chan struct{})
	}
	return b.emptied
}

// signal is called with mu locked, after a queue or the delays have become empty.
func (b *Broker) signal() {
	if b.emptied != nil {
		close(b.emptied)
		b.emptied = nil
	}
}

// Stranded implements [broker.Volatile].
func (b *Broker) Stranded() (messages, dead int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, q := range b.queues {
		switch {
		case q.dead():
			if len(b.sessions) == 0 {
				dead += q.ready()
			}
		case !b.taken(q):
			messages += q.ready()
		}
	}
	for _, d := range b.delays {
		queues, _ := b.route(&d.message)
		taken := false
		for _, q := range queues {
			taken = taken || b.taken(q)
		}
		if !taken {
			messages++
		}
	}
	return messages, dead
}

// taken is called with mu locked. It reports whether a session looks after q: consumes it, fetches suspects for the queue that it
// consumes, or holds q.
func (b *Broker) taken(q *queue) bool {
	owner := b.queues[broker.Owner(q.name)]
	return q.holder != nil || len(q.consumers) > 0 || owner != nil && len(owner.consumers) > 0
}

func (q *queue) info() broker.QueueInfo {
	return broker.QueueInfo{Ready: q.ready(), Unsettled: q.unsettled, Consumers: len(q.consumers)}
}

func (q *queue) empty() bool { return q.ready() == 0 && q.unsettled == 0 }

// dead reports whether the messages of q wait for a person.
func (q *queue) dead() bool {
	return strings.HasSuffix(q.name, broker.DeadSuffix) || q.name == broker.Undeliverable
}
