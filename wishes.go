package dispatcher

import (
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
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
	return &verdict.DiscardError{Err: err}
}

// RetryAfter asks for the next attempt after d, in place of the policy's pause: for instance what a Retry-After header said.
// Below 0 counts as 0; more than a year as a year. MaxAttempts and MaxAge of the policy still bound it, and it does not make the policy's later pauses longer; without a
// policy nothing does, and the function decides by TaskInfo.Attempt. err may be nil: the attempt has failed all the same. If err
// says [Permanent] or [Discard], that counts.
func RetryAfter(d time.Duration, err error) error {
	return &verdict.RetryAfterError{After: min(max(d, 0), broker.MaxDelay), Err: err}
}
