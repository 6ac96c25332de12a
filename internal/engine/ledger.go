package engine

import (
	"container/list"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// ledger counts the goroutines and the calls of a shift, and decides which calls are abandoned: those that still run a
// second after their timeout, as far as maxAbandoned allows. Others go on without them.
type ledger struct {
	maxAbandoned int           // at this bound an overdue call keeps its slot
	replace      func(*Call)   // starts a slot in place of that of an abandoned call; it is counted already
	total        *atomic.Int64 // of abandoned calls, for Stats
	over         func()        // ends the shift, after everything else has ended

	calls atomic.Int64 // running calls of functions, including abandoned ones; one without a timeout takes no lock

	mu         sync.Mutex    // guards the fields below; never held across I/O or user code
	goroutines int           // those of slots, abandoned ones too, of deliveries that are held, and of a suspect's fetch
	empty      chan struct{} // closed when goroutines is 0, which happens once: they end only when the shift is stopped
	runOver    bool          // the feeder has returned
	watched    deadlines     // calls with a timeout
	overdue    list.List     // calls past timeout and grace that keep their slot because of maxAbandoned; oldest first
	abandoned  int           // calls whose slot was given to others
}

func newLedger(maxAbandoned int, total *atomic.Int64, replace func(*Call), over func()) *ledger {
	l := &ledger{maxAbandoned: maxAbandoned, replace: replace, total: total, over: over, empty: make(chan struct{})}
	l.watched.init(l.onDue)
	return l
}

// enter counts n goroutines before they start. Each of them must be a run.
func (l *ledger) enter(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.goroutines += n
}

// spawn runs f on a goroutine that is counted. Its caller is one too, or the shift could end between the two.
func (l *ledger) spawn(f func()) {
	l.enter(1)
	go l.run(f)
}

// run is a goroutine that is counted already. The last one ends the shift if the feeder has returned.
func (l *ledger) run(f func()) {
	defer l.leave() // even if runtime.Goexit in user code ends the goroutine
	f()
}

func (l *ledger) leave() {
	l.mu.Lock()
	l.goroutines--
	last, over := l.goroutines == 0, l.goroutines == 0 && l.runOver
	l.mu.Unlock()
	if last {
		close(l.empty)
	}
	if over {
		l.over()
	}
}

// runEnded notes that the feeder has returned, or will never run. It reports whether the shift is over; the caller then
// ends it.
func (l *ledger) runEnded() (over bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.runOver = true
	return l.goroutines == 0
}

// stopTimer releases the timer when the shift is over.
func (l *ledger) stopTimer() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watched.timer.Stop()
}

// counts returns the number of running calls, and of the abandoned ones among them.
func (l *ledger) counts() (calls, abandoned int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.calls.Load()), l.abandoned
}

// callBegins counts the call and, if it has a timeout, starts watching it.
func (l *ledger) callBegins(c *Call) {
	l.calls.Add(1)
	if c.due.IsZero() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watched.add(c)
}

// callEnded stops watching the call and reports whether it had been abandoned. When an abandoned call ends, the next
// overdue one may be abandoned.
func (l *ledger) callEnded(c *Call) (abandoned bool) {
	if c.due.IsZero() { // never abandoned
		l.calls.Add(-1)
		return false
	}
	l.mu.Lock()
	l.calls.Add(-1)
	abandoned = c.state == callAbandoned
	c.state = callFinished
	l.watched.remove(c)
	if c.overdue != nil {
		l.overdue.Remove(c.overdue)
	}
	var next *Call
	if abandoned {
		l.abandoned--
		next = l.abandonOverdue()
	}
	l.mu.Unlock()
	if next != nil {
		l.replace(next)
	}
	return abandoned
}

// onDue is the timer's function. It abandons calls whose timeout and grace have passed, as far as maxAbandoned allows.
func (l *ledger) onDue() {
	var abandoned []*Call
	l.mu.Lock()
	for c := l.watched.due(time.Now()); c != nil; c = l.watched.due(time.Now()) {
		c.overdue = l.overdue.PushBack(c)
	}
	for c := l.abandonOverdue(); c != nil; c = l.abandonOverdue() {
		abandoned = append(abandoned, c)
	}
	l.mu.Unlock()
	for _, c := range abandoned {
		l.replace(c)
	}
}

// abandonOverdue marks the oldest overdue call as abandoned and returns it. It returns nil if there is none, or if the
// bound allows no more. The caller holds mu, and calls replace after unlocking.
func (l *ledger) abandonOverdue() *Call {
	if l.overdue.Len() == 0 || l.abandoned >= l.maxAbandoned {
		return nil
	}
	c := l.overdue.Remove(l.overdue.Front()).(*Call)
	c.overdue = nil
	c.state = callAbandoned
	c.stage.CompareAndSwap(callBinding, callUnbound)
	l.abandoned++
	l.goroutines++ // the replacement; counted here, since the abandoned call and its slot may end before it starts
	l.total.Add(1)
	return c
}

// dueAt returns when a call that starts now is abandoned; zero = never.
func dueAt(now time.Time, timeout time.Duration) time.Time {
	if timeout <= 0 {
		return time.Time{}
	}
	return now.Add(timeout).Add(verdict.Grace)
}
