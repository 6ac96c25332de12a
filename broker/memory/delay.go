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

// delay keeps m until due.
func (b *Broker) delay(m broker.Message, due time.Time) {
	m.NotBefore = time.Time{}
	b.delaySeq++
	d := &delayed{message: m, due: due, seq: b.delaySeq}
	heap.Push(&b.delays, d)
	if b.delays[0] == d {
		b.arm()
	}
}

// arm sets the timer for the earliest message. With none it stops it, so that an idle broker costs nothing.
func (b *Broker) arm() {
	switch {
	case b.timer == nil && len(b.delays) > 0:
		b.timer = time.AfterFunc(time.Until(b.delays[0].due), b.deliverDue)
	case b.timer == nil:
	case len(b.delays) > 0:
		b.timer.Reset(time.Until(b.delays[0].due))
	default:
		b.timer.Stop()
	}
}

// deliverDue is the timer's. It may run in vain, after the timer was set anew while it waited for the lock.
func (b *Broker) deliverDue() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for len(b.delays) > 0 && !b.delays[0].due.After(now) {
		d := heap.Pop(&b.delays).(*delayed)
		queues, _ := b.route(&d.message)
		if len(queues) == 0 {
			queues = []*queue{b.undeliverable()}
		}
		for _, q := range queues {
			q.push(&d.message)
			q.dispatch()
		}
	}
	b.arm()
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
