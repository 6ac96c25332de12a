package dispatcher

import (
	"container/heap"
	"errors"
	"time"
)

// errAbandoned is the outcome of a call that ran on after its timeout and grace.
var errAbandoned = errors.New("still running after its timeout; abandoned")

// Reasons to put off a task while a call of it runs here.
var (
	errRuns         = errors.New("a call of it runs here")
	errStillRunning = errors.New("an abandoned call of it still runs here")
)

// deadlines holds the calls with a timeout, the next due first, and one timer. It is guarded by shift.mu.
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
func (d *deadlines) add(c *call) {
	heap.Push(&d.calls, c)
	if d.armed.IsZero() || c.due.Before(d.armed) {
		d.arm(c.due)
	}
}

// remove stops watching c. It leaves the timer alone: if nothing is due when it fires, the timer is set again.
func (d *deadlines) remove(c *call) {
	if c.index >= 0 {
		heap.Remove(&d.calls, c.index)
	}
}

// due removes and returns a call that is due now. If there is none, it returns nil and sets the timer for the next one.
func (d *deadlines) due(now time.Time) *call {
	if len(d.calls) == 0 {
		d.armed = time.Time{}
		return nil
	}
	if c := d.calls[0]; c.due.After(now) {
		d.arm(c.due)
		return nil
	}
	return heap.Pop(&d.calls).(*call)
}

func (d *deadlines) arm(at time.Time) {
	d.armed = at
	d.timer.Reset(time.Until(at))
}

// onDue is the timer's function. It abandons calls whose timeout and grace have passed, as far as MaxAbandoned allows.
func (s *shift) onDue() {
	var abandoned []*call
	s.mu.Lock()
	for c := s.watched.due(time.Now()); c != nil; c = s.watched.due(time.Now()) {
		c.overdue = s.overdue.PushBack(c)
	}
	for c := s.abandonOverdue(); c != nil; c = s.abandonOverdue() {
		abandoned = append(abandoned, c)
	}
	s.mu.Unlock()
	for _, c := range abandoned {
		s.replace(c)
	}
}

// abandonOverdue marks the oldest overdue call as abandoned and returns it. It returns nil if there is none, or if the
// bound allows no more. The caller holds shift.mu, and calls replace after unlocking.
func (s *shift) abandonOverdue() *call {
	if s.overdue.Len() == 0 || s.abandoned >= s.w.cfg.MaxAbandoned {
		return nil
	}
	c := s.overdue.Remove(s.overdue.Front()).(*call)
	c.overdue = nil
	c.state = callAbandoned
	c.stage.CompareAndSwap(callBinding, callUnbound)
	s.abandoned++
	s.slots++ // the replacement; counted here, since the abandoned call and its slot may end before it starts
	s.w.server.stats.abandoned.Add(1)
	return c
}

// callHeap orders calls by when they are due. Each call stores its index.
type callHeap []*call

func (h callHeap) Len() int           { return len(h) }
func (h callHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h callHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *callHeap) Push(x any) {
	c := x.(*call)
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
