package dispatcher

import (
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/seed-416683c9/dispatcher/broker"
)

// What a task function can say about its failure. All are found in wrapped and joined errors, too. If an error says several
// things, Permanent counts before Discard, and Discard before RetryAfter. So a middleware that wraps every failure in RetryAfter
// overrules no function that wants no other attempt.

// Permanent marks an error that trying again cannot cure: the task becomes a dead letter at once, whatever its policy, with
// [ReasonPermanent]. nil stays nil. It counts before [Discard] and [RetryAfter] in the same error, however they are wrapped. It is backoff's own mark, so backoff.Permanent of cenkalti/backoff/v4 does the same.
func Permanent(err error) error { return backoff.Permanent(err) }

// Discard marks an error after which the task is of no use to anybody: it is acknowledged, counted in Stats.Discarded and logged,
// and not kept. nil stays nil. It counts before [RetryAfter] in the same error, however they are wrapped, and after [Permanent].
func Discard(err error) error {
	if err == nil {
		return nil
	}
	return &discardError{err}
}

// RetryAfter asks for the next attempt after d, in place of the policy's pause: for instance what a Retry-After header said.
// Below 0 counts as 0; more than a year as a year. MaxAttempts and MaxAge of the policy still bound it, and it does not make the policy's later pauses longer; without a
// policy nothing does, and the function decides by TaskInfo.Attempt. err may be nil: the attempt has failed all the same. If err
// says [Permanent] or [Discard], that counts.
func RetryAfter(d time.Duration, err error) error {
	return &retryAfterError{min(max(d, 0), broker.MaxDelay), err}
}

type discardError struct{ err error }

func (e *discardError) Error() string { return e.err.Error() }
func (e *discardError) Unwrap() error { return e.err }

type retryAfterError struct {
	after time.Duration
	err   error
}

func (e *retryAfterError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("asks to be tried again after %v", e.after)
	}
	return e.err.Error()
}
func (e *retryAfterError) Unwrap() error { return e.err }

// wish is what an error asks for.
type wish struct {
	kind  wishKind
	after time.Duration
}

type wishKind int

const (
	wishNothing wishKind = iota
	wishPermanent
	wishRetryAfter
	wishDiscard
)

// wishOf reads it from an error of the user's.
func wishOf(err error) wish {
	if err == nil {
		return wish{}
	}
	if _, ok := find[*backoff.PermanentError](err); ok {
		return wish{kind: wishPermanent}
	}
	if _, ok := find[*discardError](err); ok {
		return wish{kind: wishDiscard}
	}
	if e, ok := find[*retryAfterError](err); ok {
		return wish{wishRetryAfter, e.after}
	}
	return wish{}
}

// find is errors.AsType for an error of the user's: it contains the panics of the error's own As and Unwrap. Each search by itself,
// since what is wrapped in a wish may be broken, and only the search for that wish ends before it.
func find[E error](err error) (e E, found bool) {
	defer func() {
		if recover() != nil {
			found = false
		}
	}()
	return errors.AsType[E](err)
}
