package engine

import (
	"bytes"
	"hash/maphash"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// running holds the tasks whose functions run in this server, so that none runs twice in parallel here. A task is
// delivered again while it runs if its link was lost, and a person may replay a task whose abandoned call still runs.
//
// Every call takes its lock twice. So that slots hardly ever wait for each other, the tasks are distributed over shards
// by uuid.
type running struct {
	seed   maphash.Seed
	shards [64]shard
}

// shard is one part of running. Runs of the same task are in the same shard.
type shard struct {
	mu    sync.Mutex
	tasks map[taskKey]*run
	_     [48]byte // shards in one cache line would slow each other down
}

// of returns the shard of r.
func (t *running) of(r *run) *shard {
	return &t.shards[maphash.String(t.seed, r.key.uuid)%uint64(len(t.shards))]
}

// taskKey identifies a task. A task that is routed to two queues counts as two tasks. Tasks of different names that
// share a uuid, say an order number, are different tasks.
type taskKey struct{ queue, name, uuid string }

// run is one task under way. Guarded by the lock of its shard.
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
	s := t.of(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if other = s.tasks[r.key]; other != nil {
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
	if s.tasks == nil {
		s.tasks = make(map[taskKey]*run)
	}
	s.tasks[r.key] = r
	return nil, false
}

// looksLike reports whether the message of r may be that of other, delivered again. The caller holds its shard.mu.
func (r *run) looksLike(other *run) bool {
	return r.again && other.delivery != nil && other.attempts == r.attempts &&
		other.delivery.Timestamp.Equal(r.delivery.Timestamp) && bytes.Equal(other.delivery.Body, r.delivery.Body)
}

// decide records the verdict on an abandoned call, whose function still runs. Waiting runs may inherit it.
func (t *running) decide(r *run, v verdict.Verdict) {
	if r.key.uuid == "" {
		return
	}
	s := t.of(r)
	s.mu.Lock()
	defer s.mu.Unlock()
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
	s := t.of(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.ended != nil {
		r.decide(v, false)
	}
	s.remove(r)
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
	s := t.of(r)
	s.mu.Lock()
	defer s.mu.Unlock()
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
	s := t.of(r)
	s.mu.Lock()
	defer s.mu.Unlock()
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
	s := t.of(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(r)
}

// remove ends r if it is the run of its task. The caller holds mu.
func (s *shard) remove(r *run) {
	if s.tasks[r.key] == r {
		delete(s.tasks, r.key)
		if r.ended != nil {
			close(r.ended)
		}
	}
}
