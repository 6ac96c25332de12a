package dispatcher

import (
	"bytes"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// running knows the tasks whose functions run in this server, so that none runs twice in parallel here: a task is delivered
// again while it runs when its link was lost, and a person may replay one whose abandoned call goes on.
type running struct {
	mu    sync.Mutex
	tasks map[taskKey]*run
}

// taskKey: a task that is routed to two queues is two tasks, and a uuid that a program uses for tasks of several names, say an order
// number, is that of several tasks.
type taskKey struct{ queue, name, uuid string }

// run is one task under way. Guarded by running.mu.
type run struct {
	key      taskKey
	attempts int  // made before this one
	again    bool // the message was handed out before
	since    time.Time
	heir     *run // waits for this one, and seems to be its message delivered again; nil = none does

	delivery  *broker.Delivery // the latest of the message; nil = it is settled. Read only.
	isDecided bool
	decision  verdict.Verdict
	abandoned bool          // decided while the function runs on
	decided   chan struct{} // made by the first who waits; closed with isDecided
	ended     chan struct{} // likewise; closed when the function has returned
}

// begin registers r, or returns the run of the same task that is under way. A task without an identity is always new. heir: r seems to be
// the message of other, delivered again, and is the first that does.
func (t *running) begin(r *run) (other *run, heir bool) {
	if r.key.uuid == "" {
		return nil, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if other = t.tasks[r.key]; other != nil {
		if other.ended == nil {
			other.decided, other.ended = make(chan struct{}), make(chan struct{})
			if other.isDecided {
				close(other.decided)
			}
		}
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

// decide notes the verdict, which those who wait for it may take. abandoned: the function runs on.
func (t *running) decide(r *run, v verdict.Verdict, abandoned bool) {
	if r.key.uuid == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.isDecided {
		return
	}
	r.isDecided, r.decision, r.abandoned = true, v, abandoned
	if r.decided != nil {
		close(r.decided)
	}
}

// take has r take the verdict on other, which is decided, if its message is that of other, delivered again: then other's delivery is
// lost, and r is what holds the message now. What looks the same beside it is another message; to acknowledge that too would lose a
// task of a program that publishes one task again and again, with one uuid. Otherwise it tells whether other was abandoned.
func (t *running) take(r, other *run) (v verdict.Verdict, taken, abandoned bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.looksLike(other) && isLost(other.delivery) {
		other.delivery = r.delivery
		return other.decision, true, other.abandoned
	}
	return verdict.Verdict{}, false, other.abandoned
}

// settled notes that the message of r is settled: nothing that comes is it.
func (t *running) settled(r *run) {
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

// end lets the task run again: its function has returned.
func (t *running) end(r *run) {
	if r.key.uuid == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tasks[r.key] == r {
		delete(t.tasks, r.key)
		if r.ended != nil {
			close(r.ended)
		}
	}
}
