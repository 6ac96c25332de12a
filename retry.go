package dispatcher

import (
	"fmt"
	"math"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// RetryPolicy decides whether and when a task whose attempt failed is tried again. It is set for a task, a worker or
// the whole server. The task's policy replaces the worker's, and the worker's replaces the server's; fields are not
// merged. Without any policy, a task has one attempt.
//
// The pause after attempt n is InitialInterval × Multiplier^(n-1), at most MaxInterval, then changed at random by
// Jitter. Attempts that ended with [RetryAfter] do not count in this n, since a task that waits for a rate limit has
// not failed that often. The state of a policy travels with the task, so it outlives workers. A task that has used up
// its attempts becomes a dead letter.
type RetryPolicy struct {
	// MaxAttempts is the number of attempts in all, the first one included. 0: 5. Negative: as many as MaxAge allows.
	MaxAttempts int
	// InitialInterval is the pause after the first attempt. 0: 1 s. Negative, or above a year: an error.
	InitialInterval time.Duration
	// MaxInterval bounds the pauses. 0: 1 h, or InitialInterval if that is longer.
	// Shorter than InitialInterval: an error.
	MaxInterval time.Duration
	// Multiplier is the factor between a pause and the one before. 0: 2. 1: all pauses are the same. Otherwise from 1
	// to 1000.
	Multiplier float64
	// Jitter is the share, up to 1, by which a pause is lengthened or shortened at random, so that tasks that failed
	// together do not come back together. 0: 0.2. Negative: none.
	Jitter float64
	// MaxAge is the longest time between the beginnings of the first and the last attempt. 0: no limit. Negative: an
	// error.
	MaxAge time.Duration
}

// maxMultiplier is far above any useful value. It keeps a typing error from making every second pause the longest.
const maxMultiplier = 1000

func (p *RetryPolicy) withDefaults() *verdict.Policy { return (*verdict.Policy)(p).WithDefaults() }

// validate reports every problem; field names the policy.
func (p *RetryPolicy) validate(field string) error {
	if p == nil {
		return nil
	}
	var bad problems
	no := func(wrong bool, format string, args ...any) {
		bad.addIf(wrong, fmt.Errorf(field+"."+format, args...))
	}
	no(p.InitialInterval < 0, "InitialInterval is negative")
	no(p.InitialInterval > broker.MaxDelay,
		"InitialInterval is %v, the maximum is %v", p.InitialInterval, broker.MaxDelay)
	no(p.MaxInterval < 0, "MaxInterval is negative")
	no(p.MaxInterval > broker.MaxDelay, "MaxInterval is %v, the maximum is %v", p.MaxInterval, broker.MaxDelay)
	first := p.InitialInterval
	if first == 0 {
		first = verdict.DefaultInitialInterval
	}
	no(p.MaxInterval > 0 && p.MaxInterval < first,
		"MaxInterval is %v, shorter than the first interval, %v", p.MaxInterval, first)
	no(p.Multiplier != 0 && !(p.Multiplier >= 1 && p.Multiplier <= maxMultiplier),
		"Multiplier is %v, want 1 to %d", p.Multiplier, maxMultiplier)
	no(p.Jitter > 1 || math.IsNaN(p.Jitter), "Jitter is %v, the maximum is 1", p.Jitter)
	no(p.MaxAge < 0, "MaxAge is negative")
	return bad.err()
}
