package dispatcher

import "sync"

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
	attempts int    // made before this one
	body     []byte // of the message; read only

	isDecided bool
	decision  verdict
	abandoned bool          // decided while the function runs on
	decided   chan struct{} // made by the first who waits; closed with isDecided
	ended     chan struct{} // likewise; closed when the function has returned
}

// begin registers r, or returns the run of the same task that is under way. A task without an identity is always new.
func (t *running) begin(r *run) (other *run) {
	if r.key.uuid == "" {
		return nil
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
		return other
	}
	if t.tasks == nil {
		t.tasks = make(map[taskKey]*run)
	}
	t.tasks[r.key] = r
	return nil
}

// decide notes the verdict, which those who wait for it may take. abandoned: the function runs on.
func (t *running) decide(r *run, v verdict, abandoned bool) {
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

// decisionOf is what was decided, if anything was.
func (t *running) decisionOf(r *run) (v verdict, decided, abandoned bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return r.decision, r.isDecided, r.abandoned
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
