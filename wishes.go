package dispatcher

import (
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// A task function can mark its errors with the functions below. The marks are found in wrapped and joined errors, too.
// If an error has several, Permanent counts before Discard, and Discard before RetryAfter. So a middleware that wraps
// every failure in RetryAfter does not overrule a function that wants no other attempt.

// Permanent marks an error that trying again cannot cure. The task becomes a dead letter at once, with
// [ReasonPermanent], whatever its policy. If err is nil, Permanent returns nil. It takes precedence over [Discard] and
// [RetryAfter] in the same error, however they are wrapped. backoff.Permanent of cenkalti/backoff/v4 has the same
// effect.
func Permanent(err error) error { return backoff.Permanent(err) }

// Discard marks an error after which nobody needs the task. The task is acknowledged, counted in Stats.Discarded and
// logged, and not kept. If err is nil, Discard returns nil. In the same error it takes precedence over [RetryAfter],
// and [Permanent] over it, however they are wrapped.
func Discard(err error) error {
	if err == nil {
		return nil
	}
	return &verdict.DiscardError{Err: err}
}

// RetryAfter asks for the next attempt after d instead of the policy's pause, for instance because of a Retry-After
// header. A d below 0 counts as 0, and more than a year as a year. MaxAttempts and MaxAge of the policy still hold, and
// the policy's later pauses do not become longer. Without a policy nothing bounds the attempts, so the function should
// stop by TaskInfo.Attempt. err may be nil: the attempt has failed nevertheless. A [Permanent] or [Discard] in err
// takes precedence.
func RetryAfter(d time.Duration, err error) error {
	return &verdict.RetryAfterError{After: min(max(d, 0), broker.MaxDelay), Err: err}
}
