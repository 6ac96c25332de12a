package verdict

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// hostileError panics in each of its methods.
type hostileError struct{}

func (hostileError) Error() string { panic("text") }
func (hostileError) As(any) bool   { panic("as") }
func (hostileError) Unwrap() error { panic("unwrap") }

func TestAnErrorThatPanicsAsksForNothing(t *testing.T) {
	t.Parallel()
	if o := OutcomeOf(hostileError{}); o.Wish != (Wish{}) || o.Text == "" {
		t.Errorf("got %+v", o)
	}
}

func TestWishesAreFoundInWrappedErrors(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	permanent, discard, after := backoff.Permanent(boom), &DiscardError{boom}, &RetryAfterError{time.Second, boom}
	for want, err := range map[Wish]error{
		{}:                    boom,
		{Kind: WishPermanent}: fmt.Errorf("a: %w", errors.Join(discard, after, permanent)),
		{Kind: WishRetryAfter, After: time.Second}:     fmt.Errorf("b: %w", errors.Join(boom, after)),
		{Kind: WishDiscard}:                            fmt.Errorf("c: %w", &RetryAfterError{time.Hour, fmt.Errorf("d: %w", discard)}),
		{Kind: WishRetryAfter, After: 2 * time.Second}: &RetryAfterError{2 * time.Second, nil},
	} {
		if got := WishOf(err); got != want {
			t.Errorf("%v: got %+v, want %+v", err, got, want)
		}
	}
	if got := WishOf(nil); got != (Wish{}) {
		t.Errorf("no error: got %+v", got)
	}
}

// A wish may wrap an error that panics. The search for the wish ends before it reaches that error.
func TestAWishAroundAnErrorThatPanicsIsFound(t *testing.T) {
	t.Parallel()
	for want, err := range map[WishKind]error{
		WishPermanent:  backoff.Permanent(hostileError{}),
		WishDiscard:    &DiscardError{hostileError{}},
		WishRetryAfter: &RetryAfterError{time.Second, hostileError{}},
	} {
		if got := WishOf(err); got.Kind != want {
			t.Errorf("%T: got %+v", err, got)
		}
	}
}
