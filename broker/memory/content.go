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
	Delayed int                         // messages that are not due yet and in no queue
	// Messages in queues named <queue>.dead and in broker.Undeliverable; they wait for a person.
	Dead  int
	Total int // all messages, including Delayed and Dead
}

// Pending returns the number of messages that still need work: all but the dead ones.
func (c Content) Pending() int { return c.Total - c.Dead }

// Content describes all queues and messages. It does not block. Its cost grows with the number of queues.
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

// Drain waits until no work is left: [Content.Pending] is 0. It waits for ready, unsettled and delayed messages, even
// in queues without a consumer, and for messages that are published meanwhile. It does not wait for dead messages or
// for tasks in an outbox. Drain neither takes nor refuses messages.
//
// If ctx ends first, the error Is ctx's and gives the number of messages left. Drain is safe for concurrent use.
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

// Emptied returns a channel that is closed when a queue becomes empty or is deleted, or when the last delayed message
// is due. It is for callers that wait for another state than Drain does. Call Emptied first and [Broker.Content]
// afterwards, so that no change is missed. Each change has a channel of its own. Emptied does not block.
func (b *Broker) Emptied() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.watch()
}

// pending reports whether any work is left. The caller holds mu.
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

// watch returns a channel that is closed when pending may have become false. The caller holds mu.
func (b *Broker) watch() <-chan struct{} {
	if b.emptied == nil {
		b.emptied = make(chan struct{})
	}
	return b.emptied
}

// signal closes the channel of watch. It is called with mu locked, after a queue or the delays have become empty.
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

// taken reports whether a session consumes q, fetches suspects for the queue that it consumes, or holds q. The caller
// holds mu.
func (b *Broker) taken(q *queue) bool {
	owner := b.queues[broker.Owner(q.name)]
	return q.holder != nil || len(q.consumers) > 0 || owner != nil && len(owner.consumers) > 0
}

func (q *queue) info() broker.QueueInfo {
	info := broker.QueueInfo{Ready: q.ready(), Unsettled: q.unsettled}
	for c := range q.consumers {
		if c.limit > 0 {
			info.Consumers++
		}
	}
	return info
}

func (q *queue) empty() bool { return q.ready() == 0 && q.unsettled == 0 }

// dead reports whether the messages of q wait for a person.
func (q *queue) dead() bool {
	return strings.HasSuffix(q.name, broker.DeadSuffix) || q.name == broker.Undeliverable
}
