package fault

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

func TestNewHasItsOwnTextAndIsAnother(t *testing.T) {
	t.Parallel()
	err := New("mine", broker.ErrNotSent)
	if err.Error() != "mine" || !errors.Is(err, broker.ErrNotSent) || errors.Is(err, broker.ErrRejected) {
		t.Errorf("got %v", err)
	}
	if errors.Is(New("mine", broker.ErrNotSent), err) {
		t.Error("two errors with the same text are equal")
	}
}

// With errgroup, the cause is the error of a sibling. If it were wrapped, a publish would have two outcomes.
func TestEndedBeforeQuotesTheCauseAndDoesNotWrapIt(t *testing.T) {
	t.Parallel()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	caused, cancelCause := context.WithCancelCause(t.Context())
	cancelCause(broker.ErrRejected)
	for _, c := range []struct {
		ctx  context.Context
		is   error
		want string
	}{
		{cancelled, context.Canceled, "outcome: context canceled"},
		{expired, context.DeadlineExceeded, "outcome: context deadline exceeded"},
		{caused, context.Canceled, "outcome: context canceled (" + broker.ErrRejected.Error() + ")"},
	} {
		outcome := New("outcome", broker.ErrNotSent)
		err := EndedBefore(outcome, c.ctx)
		if err.Error() != c.want || !errors.Is(err, outcome) || !errors.Is(err, broker.ErrNotSent) || !errors.Is(err, c.is) {
			t.Errorf("got %v, want %s", err, c.want)
		}
		if errors.Is(err, broker.ErrRejected) {
			t.Errorf("%v wraps the cause", err)
		}
	}
}
