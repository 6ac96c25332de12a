package rabbitmq

import (
	"context"
	"sync"
	"sync/atomic"
)

// turn is a lock that can be waited for within a context. It is the only kind of lock that is held across I/O: the
// frames of two publishes, or the answers to two calls, must not mix on one AMQP channel. That I/O ends with the
// socket.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// take waits for the turn until ctx ends or over is closed.
func (t turn) take(ctx context.Context, over <-chan struct{}) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-over:
		return errOver
	}
}

func (t turn) give() { <-t }

// tally counts what is under way and signals when nothing is. The zero value is ready.
type tally struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed at the next zero; nil = nobody asked
}

func (t *tally) add() {
	t.mu.Lock()
	t.n++
	t.mu.Unlock()
}

func (t *tally) done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.none != nil {
		close(t.none)
		t.none = nil
	}
}

// zero returns a channel that is closed now, or when the count next falls to zero.
func (t *tally) zero() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == 0 {
		now := make(chan struct{})
		close(now)
		return now
	}
	if t.none == nil {
		t.none = make(chan struct{})
	}
	return t.none
}

// gate is shut while the broker blocks publishers. The zero value is open.
type gate struct {
	shut atomic.Pointer[blockage]
}

type blockage struct {
	reason string
	over   chan struct{}
}

// set shuts or opens the gate. Only one goroutine calls it.
func (g *gate) set(blocked bool, reason string) {
	var next *blockage
	if blocked {
		next = &blockage{reason: reason, over: make(chan struct{})}
	}
	if before := g.shut.Swap(next); before != nil {
		close(before.over)
	}
}

// pass waits until the gate is open.
func (g *gate) pass(ctx context.Context, over <-chan struct{}) error {
	for {
		b := g.shut.Load()
		if b == nil {
			return nil
		}
		select {
		case <-b.over:
		case <-ctx.Done():
			return &blockedError{b.reason, ctx.Err()}
		case <-over:
			return errOver
		}
	}
}

// errand is a job that is done once, by the session that needs it first. Others that need it wait for that. If it
// failed, the next session that needs it tries again. The zero value is ready.
type errand struct {
	mu  sync.Mutex // taken before session.mu
	run *run       // under way, or done; nil = to be done
}

// run is one attempt at an errand.
type run struct {
	over chan struct{} // closed when err is set
	err  error
	by   *session // whose goroutine it is; nil once it has succeeded
}

// do runs f, or waits for the run of another call, perhaps of another session. f belongs to the session: it goes on
// when ctx ends.
func (e *errand) do(ctx context.Context, s *session, f func() error) (*run, error) {
	for {
		r, err := e.begin(s, f)
		if err != nil {
			return nil, err
		}
		select {
		case <-r.over:
		default:
			select {
			case <-r.over:
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-s.dead:
				return nil, s.Err()
			}
		}
		if r.err == nil || r.by == s { // the other session may just have ended
			return r, r.err
		}
	}
}

// begin returns the run that is under way or done, or begins one.
func (e *errand) begin(s *session, f func() error) (*run, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.run != nil {
		return e.run, nil
	}
	if err := s.begin(&s.goroutines); err != nil {
		return nil, err
	}
	r := &run{over: make(chan struct{}), by: s}
	e.run = r
	go func() {
		defer s.goroutines.done()
		if r.err = f(); r.err != nil {
			e.forget(r)
		} else {
			r.by = nil // it outlives the session
		}
		close(r.over)
	}()
	return r, nil
}

// forget makes the errand due again, unless that was decided since r, and reports whether it did so.
func (e *errand) forget(r *run) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.run != r {
		return false
	}
	e.run = nil
	return true
}
