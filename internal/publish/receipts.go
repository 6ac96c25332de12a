package publish

import (
	"context"
	"sync"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/fault"
)

// Receipts owns the outcomes of one call of Session.Publish. Its methods may be called by many goroutines at once.
type Receipts struct {
	mu       sync.Mutex // guards the fields below
	outcomes []error
	open     []bool // no outcome yet
	left     int
	all      chan struct{} // closed when left is 0
}

// NewReceipts returns the receipts for n messages, at least one.
func NewReceipts(n int) *Receipts {
	r := &Receipts{outcomes: make([]error, n), open: make([]bool, n), left: n, all: make(chan struct{})}
	for i := range r.open {
		r.open[i] = true
	}
	return r
}

// Done is called by the session for each message. It ignores a second call for the same message, which breaks the
// seam's rule: the caller has already received the first outcome.
func (r *Receipts) Done(i int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.open[i] {
		return
	}
	r.open[i], r.outcomes[i] = false, err
	if r.left--; r.left == 0 {
		close(r.all)
	}
}

// Wait returns the outcomes when all are there. Messages without one when ctx ends are unconfirmed; an outcome that
// comes later is dropped.
func (r *Receipts) Wait(ctx context.Context) []error {
	select {
	case <-r.all:
		return r.outcomes
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	outcomes := make([]error, len(r.outcomes))
	copy(outcomes, r.outcomes)
	for i, open := range r.open {
		if open {
			outcomes[i] = fault.EndedBefore(broker.ErrUnconfirmed, ctx)
		}
	}
	return outcomes
}

// once returns the callback for a publish of one message. It sends the outcome to a channel that holds one, and
// ignores a second call, which package broker forbids.
func once(outcome chan<- error) func(int, error) {
	return func(_ int, err error) {
		select {
		case outcome <- err:
		default:
		}
	}
}
