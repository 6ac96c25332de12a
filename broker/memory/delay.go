package memory

import (
	"container/heap"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// delayed is a message that enters its queues when it is due. It is routed then: queues may be made or deleted
// meanwhile.
type delayed struct {
	message broker.Message
	due     time.Time
	seq     uint64 // order among those due at the same time
}

// delay keeps m until wait after now. The caller must have measured wait from now, and now must have a monotonic
// reading, so that every due has one. Once the wall clock was set, times with and without a monotonic reading have no
// common order, and the heap would hold messages up behind later ones.
func (b *Broker) delay(m broker.Message, now time.Time, wait time.Duration) {
	b.delaySeq++
	d := &delayed{message: m, due: now.Add(wait), seq: b.delaySeq}
	heap.Push(&b.delays, d)
	if b.delays[0] == d {
		b.arm()
	}
}

// arm sets the timer for the earliest message. Without a message it stops the timer, so that an idle broker costs
// nothing. Without a session it does too: nobody would notice a late message, and the timer would keep a forgotten
// broker in memory until its last message is due, perhaps for a year. The next session arms the timer again.
func (b *Broker) arm() {
	switch {
	case len(b.delays) == 0 || len(b.sessions) == 0:
		if b.timer != nil {
			b.timer.Stop()
		}
	case b.timer == nil:
		b.timer = time.AfterFunc(time.Until(b.delays[0].due), b.deliverDue)
	default:
		b.timer.Reset(time.Until(b.delays[0].due))
	}
}

// dueAtOnce is the most messages delivered under one lock. If very many are due at the same time, other callers get the
// lock in between.
const dueAtOnce = 100

// deliverDue delivers all due messages. The timer calls it. It may find nothing due if the timer was reset while it
// waited for the lock, and two calls may overlap.
func (b *Broker) deliverDue() {
	for more := true; more; {
		more = b.deliverSome()
	}
}

// deliverSome delivers up to dueAtOnce due messages and reports whether more may be due.
func (b *Broker) deliverSome() (more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for range dueAtOnce {
		if len(b.delays) == 0 || len(b.sessions) == 0 || b.delays[0].due.After(now) {
			b.arm()
			return false
		}
		d := heap.Pop(&b.delays).(*delayed)
		queues, _ := b.route(&d.message)
		if len(queues) == 0 {
			queues = []*queue{b.undeliverable()}
		}
		for _, q := range queues {
			q.push(&d.message)
			q.dispatch()
		}
		if len(b.delays) == 0 {
			b.signal() // its queue may be one that waits for a person
		}
	}
	return true
}

// undeliverable returns the queue broker.Undeliverable. It makes the queue if there is none.
func (b *Broker) undeliverable() *queue {
	q := b.queues[broker.Undeliverable]
	if q == nil {
		q = newQueue(broker.Undeliverable)
		b.queues[q.name] = q
	}
	return q
}

// delayHeap orders messages by due time.
type delayHeap []*delayed

func (h delayHeap) Len() int { return len(h) }
func (h delayHeap) Less(i, j int) bool {
	if h[i].due.Equal(h[j].due) {
		return h[i].seq < h[j].seq
	}
	return h[i].due.Before(h[j].due)
}
func (h delayHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *delayHeap) Push(x any)   { *h = append(*h, x.(*delayed)) }
func (h *delayHeap) Pop() any     { return popLast((*[]*delayed)(h)) }
