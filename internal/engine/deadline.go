package engine

import (
	"container/heap"
	"time"
)

// deadlines holds the calls with a timeout, the next due first, and one timer. It is guarded by ledger.mu.
type deadlines struct {
	calls callHeap
	timer *time.Timer // fires when the first call is due, or earlier
	armed time.Time   // when it fires; zero = not running
}

func (d *deadlines) init(onDue func()) {
	d.timer = time.AfterFunc(time.Hour, onDue)
	d.timer.Stop()
}

// add starts watching c. It resets the timer only if c is due before all others, so a stream of calls with the same
// timeout costs no timer.
func (d *deadlines) add(c *Call) {
	heap.Push(&d.calls, c)
	if d.armed.IsZero() || c.due.Before(d.armed) {
		d.arm(c.due)
	}
}

// remove stops watching c. It leaves the timer alone: if nothing is due when it fires, the timer is set again.
func (d *deadlines) remove(c *Call) {
	if c.index >= 0 {
		heap.Remove(&d.calls, c.index)
	}
}

// due removes and returns a call that is due now. If there is none, it returns nil and sets the timer for the next one.
func (d *deadlines) due(now time.Time) *Call {
	if len(d.calls) == 0 {
		d.armed = time.Time{}
		return nil
	}
	if c := d.calls[0]; c.due.After(now) {
		d.arm(c.due)
		return nil
	}
	return heap.Pop(&d.calls).(*Call)
}

func (d *deadlines) arm(at time.Time) {
	d.armed = at
	d.timer.Reset(time.Until(at))
}

// callHeap orders calls by when they are due. Each call stores its index.
type callHeap []*Call

func (h callHeap) Len() int           { return len(h) }
func (h callHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h callHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *callHeap) Push(x any) {
	c := x.(*Call)
	c.index = len(*h)
	*h = append(*h, c)
}
func (h *callHeap) Pop() any {
	old := *h
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	c.index = -1
	return c
}
