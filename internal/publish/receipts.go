package publish

import (
	"context"
	"iter"
	"sync/atomic"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/fault"
)

// Receipts owns the outcomes of one call of Session.Publish. Done may be called by many goroutines at once. It takes no
// lock.
type Receipts struct {
	of   []receipt
	left atomic.Int64
	all  chan struct{} // closed when left is 0
	one  [1]receipt    // of, if there is one message
}

type receipt struct {
	state atomic.Uint32
	err   error
}

// The states of a receipt.
const (
	awaited = iota
	arriving
	arrived // err is set
)

// NewReceipts returns the receipts for n messages, at least one.
func NewReceipts(n int) *Receipts {
	r := &Receipts{all: make(chan struct{})}
	if r.of = r.one[:]; n > 1 {
		r.of = make([]receipt, n)
	}
	r.left.Store(int64(n))
	return r
}

// Done is called by the session for each message. It ignores a second call for the same message, which breaks the
// seam's rule: the caller has already received the first outcome.
func (r *Receipts) Done(i int, err error) {
	x := &r.of[i]
	if !x.state.CompareAndSwap(awaited, arriving) {
		return
	}
	x.err = err
	x.state.Store(arrived)
	if r.left.Add(-1) == 0 {
		close(r.all)
	}
}

// Wait yields the outcomes in order when all are there. Messages without one when ctx ends are unconfirmed; an outcome
// that comes later is dropped.
func (r *Receipts) Wait(ctx context.Context) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		select {
		case <-r.all:
		case <-ctx.Done():
		}
		for i := range r.of {
			var err error
			if x := &r.of[i]; x.state.Load() == arrived {
				err = x.err
			} else {
				err = fault.EndedBefore(broker.ErrUnconfirmed, ctx)
			}
			if !yield(i, err) {
				return
			}
		}
	}
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
