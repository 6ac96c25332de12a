package dispatcher

import (
	"container/heap"
	"errors"
	"time"
)

// errAbandoned is the outcome of a call that ran on after its timeout and grace.
var errAbandoned = errors.New("still running after its timeout; abandoned")

// Why a task is put off of which a call runs here.
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

// add puts c under watch. The timer is touched only if c is due before all others, so a stream of calls with the same
// timeout costs no timer.
func (d *deadlines) add(c *call) {
	heap.Push(&d.calls, c)
	if d.armed.IsZero() || c.due.Before(d.armed) {
		d.arm(c.due)
	}
}

// remove ends the watch. The timer is left as it is: it finds nothing due and sets itself anew.
func (d *deadlines) remove(c *call) {
	if c.index >= 0 {
		heap.Remove(&d.calls, c.index)
	}
}

// due takes out a call that is due now; nil if there is none, and then the timer is set for the next one.
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

// onDue is the timer's: it abandons the calls that have had their timeout and their grace, as far as MaxAbandoned allows.
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

// abandonOverdue marks the oldest overdue call as abandoned, if the bound allows one more; the caller then calls replace,
// after unlocking. shift.mu is held.
func (s *shift) abandonOverdue() *call {
	if s.overdue.Len() == 0 || s.abandoned >= s.w.cfg.MaxAbandoned {
		return nil
	}
	c := s.overdue.Remove(s.overdue.Front()).(*call)
	c.overdue = nil
	c.state = callAbandoned
	c.stage.CompareAndSwap(callBinding, callUnbound)
	s.abandoned++
	s.slots++ // the replacement; counted here, since the abandoned call may end, and its slot with it, before that one starts
	s.w.server.stats.abandoned.Add(1)
	return c
}

// callHeap orders calls by when they are due; each call knows its index.
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
