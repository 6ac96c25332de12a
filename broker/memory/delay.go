package memory

import (
	"container/heap"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// delayed is a message that enters its queues when it is due. They are found then: a queue may be made or deleted meanwhile.
type delayed struct {
	message broker.Message
	due     time.Time
	seq     uint64 // order among those due at the same time
}

// delay keeps m for that long after now, which has to be the time that the wait was measured from and to have a monotonic
// reading. So has every due then: times with and without one have no common order once the wall clock was set, and a heap
// without an order holds messages up behind later ones.
func (b *Broker) delay(m broker.Message, now time.Time, wait time.Duration) {
	m.NotBefore = time.Time{}
	b.delaySeq++
	d := &delayed{message: m, due: now.Add(wait), seq: b.delaySeq}
	heap.Push(&b.delays, d)
	if b.delays[0] == d {
		b.arm()
	}
}

// arm sets the timer for the earliest message. Without one it stops it, so that an idle broker costs nothing; and without a
// session, since nobody is there to tell late from in time, and the timer would keep a broker that was forgotten in memory
// until its last message is due, perhaps for a year. The next session arms it again.
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

// dueAtOnce is how many messages are delivered under one lock: if very many are due at the same time, the others get their
// turn in between.
const dueAtOnce = 100

// deliverDue is the timer's. It may run in vain, after the timer was set anew while it waited for the lock, and twice at the
// same time.
func (b *Broker) deliverDue() {
	for more := true; more; {
		more = b.deliverSome()
	}
}

// deliverSome reports whether more is due.
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
			b.signal() // where it went, it may wait for a person
		}
	}
	return true
}

// undeliverable returns the queue of that name.
func (b *Broker) undeliverable() *queue {
	q := b.queues[broker.Undeliverable]
	if q == nil {
		q = newQueue(broker.Undeliverable)
		b.queues[q.name] = q
	}
	return q
}

// delayHeap orders messages by when they are due.
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
