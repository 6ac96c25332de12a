package verdict

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Defaults of a RetryPolicy.
const (
	defaultMaxAttempts     = 5
	DefaultInitialInterval = time.Second
	defaultMaxInterval     = time.Hour
	defaultMultiplier      = 2
	defaultJitter          = 0.2
)

// maxAge is 146 years, so that sums do not overflow.
const maxAge time.Duration = math.MaxInt64 / 2

// Policy decides whether and when a task whose attempt failed is retried. Its fields are those of the root package's
// RetryPolicy, which documents them.
type Policy struct {
	MaxAttempts     int
	InitialInterval time.Duration
	MaxInterval     time.Duration
	Multiplier      float64
	Jitter          float64
	MaxAge          time.Duration
}

// WithDefaults returns a copy with the defaults filled in. It returns nil for nil.
func (p *Policy) WithDefaults() *Policy {
	if p == nil {
		return nil
	}
	out := *p
	if out.MaxAttempts == 0 {
		out.MaxAttempts = defaultMaxAttempts
	}
	if out.InitialInterval == 0 {
		out.InitialInterval = DefaultInitialInterval
	}
	if out.MaxInterval == 0 {
		out.MaxInterval = max(defaultMaxInterval, out.InitialInterval)
	}
	if out.Multiplier == 0 {
		out.Multiplier = defaultMultiplier
	}
	if out.Jitter == 0 {
		out.Jitter = defaultJitter
	}
	out.Jitter = max(out.Jitter, 0)
	out.MaxAge = min(out.MaxAge, maxAge)
	return &out
}

// Interval returns the pause after attempt n, from 1.
func (p *Policy) Interval(n int) time.Duration {
	grown := float64(p.InitialInterval) * math.Pow(p.Multiplier, float64(n-1))
	base := p.MaxInterval
	if grown < float64(base) { // false for +Inf
		base = time.Duration(grown)
	}
	return min(time.Duration(float64(base)*(1+p.Jitter*(2*rand.Float64()-1))), broker.MaxDelay)
}
