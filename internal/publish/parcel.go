package publish

import (
	"context"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/fault"
)

// bound owns the context of items that were taken within a moment. A context for each item would cost as much as
// encoding it.
type bound struct {
	context.Context // the caller's with Timeout
	cancel          context.CancelFunc
	began           time.Time
	items           int // not over yet, and one for the stream while it may add more
}

func (b *bound) release() {
	if b.items--; b.items == 0 {
		b.cancel()
	}
}

// parcel owns an item of a stream, its message and its outcome. It is unsent, in flight or over.
type parcel[T any] struct {
	item  T
	began time.Time
	ctx   *bound
	msg   [1]broker.Message

	tried  broker.Session // the last that it was written to; nil = none
	answer chan error     // not nil while in flight; holds one
	over   bool
	err    error // once it is over
}

// end notes the outcome.
func (p *parcel[T]) end(err error) {
	p.over, p.err = true, err
	p.ctx.release()
}

// answered reports whether look returns without waiting.
func (p *parcel[T]) answered() bool { return p.answer == nil || len(p.answer) > 0 }

// wait returns the answer, or ErrUnconfirmed if there is none when ctx ends. An answer that comes later is dropped.
func (p *parcel[T]) wait() error {
	select {
	case err := <-p.answer:
		return err
	case <-p.ctx.Done():
	}
	select {
	case err := <-p.answer: // in the same moment
		return err
	default:
		return fault.EndedBefore(broker.ErrUnconfirmed, p.ctx)
	}
}

// lookAgain is how long a stream that has unsent items waits for one answer before it tries again to send them.
const lookAgain = 100 * time.Millisecond

// soon waits briefly for the answer or the end of ctx. It reports false if neither came.
func (p *parcel[T]) soon() bool {
	t := time.NewTimer(lookAgain)
	defer t.Stop()
	select {
	case err := <-p.answer:
		p.answer <- err // it holds one
	case <-p.ctx.Done():
	case <-t.C:
		return false
	}
	return true
}
