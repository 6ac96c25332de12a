package verdict

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/seed-416683c9/dispatcher/internal/text"
)

// Outcome is how an attempt ended. Text and Wish come from the user's code, so OutcomeOf reads them while the call is
// still watched.
type Outcome struct {
	Err   error
	Text  string
	Wish  Wish
	Stack *atomic.Pointer[string] // of a panic; it holds nil once the stack is logged
	// The text for the log; "" = Text. Argument values belong in dead letters, not in logs.
	Logged string
}

// OutcomeOf returns the outcome of an attempt that returned err. It runs the error's own methods and contains their
// panics.
func OutcomeOf(err error) Outcome {
	return Outcome{Err: err, Text: text.OfError(err), Wish: WishOf(err)}
}

// DiscardError is an error marked by the Discard of the root package.
type DiscardError struct{ Err error }

func (e *DiscardError) Error() string { return e.Err.Error() }

func (e *DiscardError) Unwrap() error { return e.Err }

// RetryAfterError is an error marked by the RetryAfter of the root package. Err may be nil.
type RetryAfterError struct {
	After time.Duration
	Err   error
}

func (e *RetryAfterError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("asked to be retried after %v", e.After)
	}
	return e.Err.Error()
}

func (e *RetryAfterError) Unwrap() error { return e.Err }

// Wish is what an error asks for.
type Wish struct {
	Kind  WishKind
	After time.Duration
}

// WishKind is one of the marks of an error.
type WishKind int

const (
	wishNothing WishKind = iota
	WishPermanent
	WishRetryAfter
	WishDiscard
)

// WishOf returns what the user's error asks for.
func WishOf(err error) Wish {
	if err == nil {
		return Wish{}
	}
	if _, ok := find[*backoff.PermanentError](err); ok {
		return Wish{Kind: WishPermanent}
	}
	if _, ok := find[*DiscardError](err); ok {
		return Wish{Kind: WishDiscard}
	}
	if e, ok := find[*RetryAfterError](err); ok {
		return Wish{WishRetryAfter, e.After}
	}
	return Wish{}
}

// find is errors.AsType for a user's error. It contains the panics of the error's own As and Unwrap. Each wish is
// searched for separately: an error wrapped in a wish may be broken, and only the search for that wish ends before
// reaching it.
func find[E error](err error) (e E, found bool) {
	defer func() {
		if recover() != nil {
			found = false
		}
	}()
	return errors.AsType[E](err)
}
