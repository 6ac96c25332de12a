// Package memory is the embedded broker: queues in the memory of this process, for tests, quickstarts and programs that
// need no broker of their own.
//
// It keeps the whole contract of package broker and can do everything in [broker.Capabilities]. What is special:
//
//   - Queues and messages live exactly as long as the [Broker] value, across sessions. Share one value among the servers
//     that are to see the same queues. Nothing is written to disk. [Broker.Content] tells what is there, and [Broker.Drain] waits
//     until nothing is left to be worked on: a program that is about to end calls it before it closes its servers.
//   - Messages are not copied. All deliveries of a message (several queues, redeliveries) share Body and Headers with the
//     publisher: whoever receives them treats them as read only, and [broker.Message.Forward] gives headers to change.
//   - Every publish has its outcome when Publish returns, done runs on the caller's goroutine, and ErrUnconfirmed never
//     happens. Retry, Suspect and DeadLetter are one step: there is never a moment with both messages, or with none.
//   - A message that is retried, suspected or dead-lettered arrives with an empty Exchange and the queue's name as RoutingKey.
//   - A delayed message is in no queue until it is due: it is not counted by Inspect, removed by Purge, nor deleted with a queue.
//     How long it waits is measured from its publish, whatever the wall clock is set to meanwhile.
//   - A channel of [broker.Settler.Lost] is shared by the deliveries of a consumer, or of one call of TryGet.
//   - An ephemeral queue takes messages from everybody; all other operations of other sessions on it are ErrLocked.
//   - Names and header names longer than 255 bytes and a Prefetch above 65535, which AMQP cannot carry, are ErrRejected.
//   - Stop and Close of a consumer whose session is dead return ErrSessionLost, like everything else; Session.Close does not.
//   - There are no kinds of queue: a QueueSpec.Type other than "" is errors.ErrUnsupported.
//
// There is no goroutine and no polling. Deliveries are pushed by whoever makes them possible (a publish, an ack, a
// release), and one timer waits for the earliest delayed message while a session is open: a Broker whose sessions have ended
// holds no resources but memory. It works inside a testing/synctest bubble.
package memory

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Broker is an embedded message broker. Make it with [New]. It is safe for use by many goroutines, nothing in it has to
// be closed, and no method of it or of its sessions waits for anything but its lock, save [Broker.Drain] and [broker.Session.Close].
type Broker struct {
	// mu guards everything that is reachable from here: exchanges, queues, sessions, consumers and deliveries. It is
	// held for short steps only and never while done functions or other foreign code run. One lock makes every operation
	// atomic, which is what fencing and exact losses need, and costs less than several would at this size of steps.
	mu        sync.Mutex
	exchanges map[string]*exchange
	queues    map[string]*queue
	sessions  map[*session]struct{} // the live ones
	delays    delayHeap
	delaySeq  uint64
	timer     *time.Timer   // armed for the earliest of delays while there are sessions; made by the first
	emptied   chan struct{} // see watch; nil while nobody waits
}

var (
	_ broker.Broker   = (*Broker)(nil)
	_ broker.Volatile = (*Broker)(nil)
)

// New returns an empty broker: no queues and, apart from the default one, no exchanges.
func New() *Broker {
	return &Broker{
		exchanges: make(map[string]*exchange),
		queues:    make(map[string]*queue),
		sessions:  make(map[*session]struct{}),
	}
}

// Open makes a session. It does not block and fails only if ctx has ended.
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

// KillSessions ends every live session as a lost link would and returns how many there were: consumers end, unsettled
// deliveries are given back and those that somebody had received are charged, ephemeral queues are deleted. Queues,
// messages and delayed ones stay, and new sessions can be opened at once. It is meant for tests of reconnection.
func (b *Broker) KillSessions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.sessions)
	// All die in one step: what one gives back must not reach another that is about to die.
	b.end(b.sessions, errKilled)
	return n
}
