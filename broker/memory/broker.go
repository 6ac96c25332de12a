// Package memory is the embedded broker: queues in the memory of this process, for tests, quickstarts and programs that
// need no separate broker.
//
// It implements the whole contract of package broker and has all [broker.Capabilities]. Its own rules are:
//
//   - Queues and messages live exactly as long as the [Broker] value, across sessions. To share queues, servers share
//     one value. Nothing is written to disk. [Broker.Content] describes the content, and [Broker.Drain] waits until no
//     work is left. A program that is about to end calls Drain before it closes its servers.
//   - Messages are not copied. All deliveries of a message (several queues, redeliveries) share Body and Headers with
//     the publisher. Receivers must treat them as read only; [broker.Message.Forward] returns headers that may be
//     changed.
//   - Every publish has its outcome when Publish returns, done runs on the caller's goroutine, and ErrUnconfirmed never
//     happens. Retry, Suspect and DeadLetter are atomic: there is never a moment with both messages, or with none.
//   - A retried, suspected or dead-lettered message arrives with an empty Exchange and the queue's name as RoutingKey.
//   - A delayed message is in no queue until it is due: Inspect does not count it, Purge does not remove it, and Delete
//     does not delete it. Its delay is measured from its publish, and changes of the wall clock do not affect it.
//   - The deliveries of a consumer, or of one call of TryGet, share one [broker.Settler.Lost] channel.
//   - An ephemeral queue accepts messages from all sessions. Other sessions get ErrLocked for all other
//     operations on it.
//   - Names and header names longer than 255 bytes and a Prefetch above 65535, which AMQP cannot carry, are
//     ErrRejected.
//   - Stop and Close of a consumer whose session is dead return ErrSessionLost, as other calls do. Session.Close does
//     not.
//   - There are no queue types: a QueueSpec.Type other than "" is errors.ErrUnsupported.
//
// The broker starts no goroutine and does not poll. The call that makes a delivery possible (a publish, an ack, a
// release) also pushes it. For an ack, another call that runs at that moment may do so. One timer waits for the
// earliest delayed message while a session is open. A Broker whose sessions have ended holds no resources but memory.
// It works inside a testing/synctest bubble.
package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Broker is an embedded message broker. Make it with [New]. It is safe for concurrent use and need not be closed. Its
// methods and those of its sessions wait only for its lock, except [Broker.Drain] and [broker.Session.Close].
type Broker struct {
	// mu guards everything that is reachable from here: exchanges, queues, sessions, consumers and deliveries. It is
	// held for short steps only and never while done functions or other foreign code run. Fencing and exact losses need
	// atomic operations, and for steps this short one lock costs less than several.
	mu        lock
	exchanges map[string]*exchange
	queues    map[string]*queue
	sessions  map[*session]struct{} // the live ones
	delays    delayHeap
	delaySeq  uint64
	timer     *time.Timer   // armed for the earliest of delays while there are sessions; made by the first
	emptied   chan struct{} // see watch; nil without a waiter
}

var (
	_ broker.Broker   = (*Broker)(nil)
	_ broker.Volatile = (*Broker)(nil)
)

// New returns a broker without queues and, apart from the default one, without exchanges.
func New() *Broker {
	return &Broker{
		exchanges: make(map[string]*exchange),
		queues:    make(map[string]*queue),
		sessions:  make(map[*session]struct{}),
	}
}

// Open opens a session. It does not block and fails only if ctx has ended.
func (b *Broker) Open(ctx context.Context) (broker.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	s := &session{
		broker:    b,
		done:      make(chan struct{}),
		consumers: make(map[string]*consumer),
		owners:    make(map[*owner]struct{}),
		ephemeral: make(map[*queue]struct{}),
	}
	b.mu.Lock()
	b.sessions[s] = struct{}{}
	if len(b.sessions) == 1 {
		b.arm()
	}
	b.mu.Unlock()
	return s, nil
}

// KillSessions ends every live session as a lost link would and returns their number. Consumers end, unsettled
// deliveries are given back, those that had been received are charged, and ephemeral queues are deleted. Other queues,
// messages and delayed messages stay. New sessions can be opened at once. It is meant for tests of reconnection.
func (b *Broker) KillSessions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.sessions)
	// All end in one step: a message that one gives back must not reach another that is about to end.
	b.end(b.sessions, errKilled)
	return n
}
