package memory

import (
	"container/heap"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// queue holds messages in order and hands them to its consumers. Broker.mu guards it.
type queue struct {
	name     string
	holder   *session // an ephemeral queue lives and dies with this session; nil = durable
	bindings []binding

	// Ready messages are in two places. Messages never handed out are a linked list in order of arrival. Messages given
	// back are a heap by the same order; they once left the front of the list, so all of them come before the list.
	// Both shrink with their content.
	first, last *entry
	fresh       int
	returned    entryHeap
	lastSeq     uint64

	unsettled int // handed out and not settled

	consumers map[*consumer]struct{}
	hungry    list[*consumer] // consumers with room, the next in turn first
}

func newQueue(name string) *queue { return &queue{name: name, consumers: make(map[*consumer]struct{})} }

// entry is a message in a queue, from its arrival until it is settled.
type entry struct {
	broker.Message
	next      *entry
	seq       uint64 // its place in the queue
	losses    int
	handedOut bool
	first     delivery // most messages have no other, and here it costs no allocation
}

// push adds a message that is new to the queue. The caller dispatches.
func (q *queue) push(m *broker.Message) {
	q.lastSeq++
	e := &entry{Message: *m, seq: q.lastSeq}
	e.NotBefore, e.Unreadable, e.Expiration, e.UserID = time.Time{}, "", "", "" // the publisher may have set them
	if q.last == nil {
		q.first = e
	} else {
		q.last.next = e
	}
	q.last = e
	q.fresh++
}

// putBack returns an entry to its place. If the queue was deleted, the message is gone with it.
func (q *queue) putBack(e *entry) { heap.Push(&q.returned, e) }

// pop removes and returns the oldest ready message; there must be one.
func (q *queue) pop() *entry {
	if len(q.returned) > 0 {
		return heap.Pop(&q.returned).(*entry)
	}
	e := q.first
	q.first, e.next = e.next, nil
	if q.first == nil {
		q.last = nil
	}
	q.fresh--
	return e
}

func (q *queue) ready() int { return q.fresh + len(q.returned) }

// purge drops the ready messages and returns their number.
func (q *queue) purge() int {
	n := q.ready()
	q.first, q.last, q.fresh, q.returned = nil, nil, 0, nil
	return n
}

// handOut makes a delivery of the oldest ready message for o; there must be one.
func (q *queue) handOut(o *owner) broker.Delivery {
	e := q.pop()
	d, redelivered := &e.first, e.handedOut
	if redelivered {
		d = &delivery{}
	}
	d.self, d.owner, d.entry, e.handedOut = d, o, e, true
	o.unsettled.pushBack(&d.links)
	q.unsettled++
	return broker.Delivery{Message: e.Message, Queue: q.name, Redelivered: redelivered, Losses: e.losses, Settler: d}
}

// dispatch pushes ready messages to the consumers that have room, in turn. Call it after adding a message or room.
func (q *queue) dispatch() {
	for q.hungry.len > 0 && q.ready() > 0 {
		c := q.hungry.first.self
		d := q.handOut(&c.owner)
		select {
		case c.deliveries <- d:
		default:
			// All deliveries in the channel are unsettled, and with this one at most limit <= prefetch = capacity are.
			panic("memory: no room in the channel of consumer " + c.tag)
		}
		q.hungry.remove(&c.links) // to the end of the line
		q.seat(c)
	}
}

// seat puts c in line for deliveries if it has room, and takes it out of the line otherwise.
func (q *queue) seat(c *consumer) {
	switch hungry := c.unsettled.len < c.limit; {
	case !hungry:
		q.hungry.remove(&c.links)
	case c.links.in == nil:
		q.hungry.pushBack(&c.links)
	}
}

// entryHeap orders entries by their place in the queue.
type entryHeap []*entry

func (h entryHeap) Len() int           { return len(h) }
func (h entryHeap) Less(i, j int) bool { return h[i].seq < h[j].seq }
func (h entryHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *entryHeap) Push(x any)        { *h = append(*h, x.(*entry)) }
func (h *entryHeap) Pop() any          { return popLast((*[]*entry)(h)) }

// popLast removes and returns the last element of a heap's slice. It gives memory back, since of a million delayed
// messages one may stay for a year. Moving a quarter costs less than the pops that led there.
func popLast[T any](s *[]*T) *T {
	n := len(*s) - 1
	x := (*s)[n]
	(*s)[n] = nil
	*s = (*s)[:n]
	switch {
	case n == 0:
		*s = nil
	case n >= 64 && n <= cap(*s)/4:
		*s = append(make([]*T, 0, 2*n), *s...)
	}
	return x
}
