package engine

import (
	"bytes"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// running holds the tasks whose functions run in this server, so that none runs twice in parallel here. A task is
// delivered again while it runs if its link was lost, and a person may replay a task whose abandoned call still runs.
type running struct {
	mu    sync.Mutex
	tasks map[taskKey]*run
}

// taskKey identifies a task. A task that is routed to two queues counts as two tasks. Tasks of different names that
// share a uuid, say an order number, are different tasks.
type taskKey struct{ queue, name, uuid string }

// run is one task under way. Guarded by running.mu.
type run struct {
	key      taskKey
	attempts int  // made before this one
	again    bool // the message was handed out before
	waited   bool // for another run, which may know this one as its heir
	since    time.Time
	heir     *run // waits for this one, and seems to be its message delivered again; nil = none

	delivery  *broker.Delivery // the latest of the message, read only; nil = settled
	decision  *verdict.Verdict // nil = not decided, or nobody waits for it
	abandoned bool             // decided while the function runs on
	decided   chan struct{}    // made by the first waiter; closed when there is a decision
	ended     chan struct{}    // likewise; closed when the function has returned

	// unknown is set by finish if no other goroutine knows the run any more. Only the caller of finish reads it.
	unknown bool
}

// begin registers r, or returns the run of the same task that is under way. A task without a uuid is always new. heir
// reports whether r seems to be the message of other, delivered again, and is the first that does.
func (t *running) begin(r *run) (other *run, heir bool) {
	if r.key.uuid == "" {
		return nil, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if other = t.tasks[r.key]; other != nil {
		if other.ended == nil {
			other.decided, other.ended = make(chan struct{}), make(chan struct{})
			if other.decision != nil {
				close(other.decided)
			}
		}
		r.waited = true
		if h := other.heir; r.looksLike(other) && (h == nil || h.delivery == nil || isLost(h.delivery)) {
			other.heir, heir = r, true
		}
		return other, heir
	}
	if t.tasks == nil {
		t.tasks = make(map[taskKey]*run)
	}
	t.tasks[r.key] = r
	return nil, false
}

// looksLike reports whether the message of r may be that of other, delivered again. The caller holds running.mu.
func (r *run) looksLike(other *run) bool {
	return r.again && other.delivery != nil && other.attempts == r.attempts &&
		other.delivery.Timestamp.Equal(r.delivery.Timestamp) && bytes.Equal(other.delivery.Body, r.delivery.Body)
}

// decide records the verdict on an abandoned call, whose function still runs. Waiting runs may inherit it.
func (t *running) decide(r *run, v verdict.Verdict) {
	if r.key.uuid == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r.decide(v, true)
}

func (r *run) decide(v verdict.Verdict, abandoned bool) {
	if r.decision != nil {
		return
	}
	r.decision, r.abandoned = &v, abandoned
	if r.decided != nil {
		close(r.decided)
	}
}

// finish records the verdict on a call whose function has returned, which only runs that wait need, and lets the task
// run again.
func (t *running) finish(r *run, v verdict.Verdict) {
	if r.key.uuid == "" {
		r.unknown = true
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.ended != nil {
		r.decide(v, false)
	}
	t.remove(r)
	r.unknown = r.ended == nil && !r.waited
}

// inheritance is the answer to a delivery that has waited for another one of its task to be decided.
type inheritance int

const (
	isItself  inheritance = iota // it is a task of its own, which runs when the other has ended
	inherits                     // it is the other's message, delivered again, and takes its verdict
	otherRuns                    // as isItself, but the other was abandoned and still runs
)

// inherit gives r the verdict already reached for other if r is the same message, delivered again. In that case the
// delivery of other is lost, and r now holds the message. While that delivery is not lost, a run that looks the same
// has another message. Acknowledging that too would lose a task of a program that publishes one task again and again
// with one uuid.
func (t *running) inherit(r, other *run) (verdict.Verdict, inheritance) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case r.looksLike(other) && isLost(other.delivery):
		other.delivery = r.delivery
		return *other.decision, inherits
	case other.abandoned:
		return verdict.Verdict{}, otherRuns
	}
	return verdict.Verdict{}, isItself
}

// settled notes that the message of r is settled. No later delivery is that message.
func (t *running) settled(r *run) {
	if r.unknown {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r.delivery = nil
}

func isLost(d *broker.Delivery) bool {
	select {
	case <-d.Lost():
		return true
	default:
		return false
	}
}

// end lets the task run again after its function has returned.
func (t *running) end(r *run) {
	if r.key.uuid == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remove(r)
}

func (t *running) remove(r *run) {
	if t.tasks[r.key] == r {
		delete(t.tasks, r.key)
		if r.ended != nil {
			close(r.ended)
		}
	}
}
