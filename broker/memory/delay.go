package memory

import (
	"container/heap"
	"slices"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// delayed is a message that enters its queue when it is due.
type delayed struct {
	message broker.Message
	queue   *queue
	due     time.Time
	seq     uint64 // order among those due at the same time
}

// delay keeps m out of q for that long.
func (b *Broker) delay(q *queue, m broker.Message, wait time.Duration) {
	b.delaySeq++
	d := &delayed{message: m, queue: q, due: time.Now().Add(wait), seq: b.delaySeq}
	heap.Push(&b.delays, d)
	q.delayed++
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
		d.queue.delayed--
		d.queue.push(&d.message)
		d.queue.dispatch()
	}
	b.arm()
}

// dropDelayed forgets what waits for a queue that is being deleted.
func (b *Broker) dropDelayed(q *queue) {
	if q.delayed == 0 {
		return
	}
	b.delays = slices.DeleteFunc(b.delays, func(d *delayed) bool { return d.queue == q })
	heap.Init(&b.delays)
	q.delayed = 0
	b.arm()
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
