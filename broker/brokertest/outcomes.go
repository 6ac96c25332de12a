package brokertest

import (
	"errors"
	"slices"
	"sync/atomic"

	"github.com/seed-416683c9/dispatcher/broker"
)

// outcomes records the calls of the done function of one publish.
type outcomes struct {
	runs []atomic.Int32 // how often done ran for each message
	errs []error        // its first error; read it after all is closed or runs has counted it
	left atomic.Int32
	all  chan struct{} // closed when done has run for every message
}

func newOutcomes(n int) *outcomes {
	o := &outcomes{runs: make([]atomic.Int32, n), errs: make([]error, n), all: make(chan struct{})}
	o.left.Store(int32(n))
	if n == 0 {
		close(o.all)
	}
	return o
}

func (o *outcomes) done(i int, err error) {
	if o.runs[i].Add(1) > 1 {
		return
	}
	o.errs[i] = err
	if o.left.Add(-1) == 0 {
		close(o.all)
	}
}

// once checks that done has run exactly once for every message.
func (o *outcomes) once(k *kit) {
	k.Helper()
	for i := range o.runs {
		if n := o.runs[i].Load(); n != 1 {
			k.Fatalf("done ran %d times for message %d of %d, want exactly once", n, i, len(o.runs))
		}
	}
}

// oneOutcome checks that err is nil or exactly one of the three failures of a publish.
func (k *kit) oneOutcome(err error) {
	k.Helper()
	n := 0
	for _, o := range []error{broker.ErrNotSent, broker.ErrRejected, broker.ErrUnconfirmed} {
		if errors.Is(err, o) {
			n++
		}
	}
	if err != nil && n != 1 {
		k.Errorf("outcome of a publish: %v is %d of not sent, rejected and unconfirmed, want exactly one", err, n)
	}
}

// checkOutcomes compares the outcomes of publishes whose link was cut with the content of the queue, and empties the
// queue. It reports whether the cut caught any message.
func (k *kit) checkOutcomes(queue string, msgs []broker.Message, o *outcomes) bool {
	k.Helper()
	var confirmed, notSent []string
	for i, err := range o.errs {
		k.oneOutcome(err)
		switch {
		case err == nil:
			confirmed = append(confirmed, msgs[i].ID)
		case errors.Is(err, broker.ErrNotSent):
			notSent = append(notSent, msgs[i].ID)
		case errors.Is(err, broker.ErrRejected):
			k.Errorf("a message to an existing queue was refused: %v", err)
		}
	}
	k.Logf("%d confirmed, %d not sent, %d in all", len(confirmed), len(notSent), len(msgs))
	got := k.left(queue, confirmed...)
	slices.Sort(got)
	if n := len(got) - len(slices.Compact(slices.Clone(got))); n > 0 {
		k.Errorf("%d messages are in the queue twice", n)
	}
	for _, id := range notSent {
		if _, found := slices.BinarySearch(got, id); found {
			k.Errorf("%q was reported as not sent and is in the queue", id)
		}
	}
	return len(confirmed) < len(msgs)
}
