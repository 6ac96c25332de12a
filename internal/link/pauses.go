package link

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/seed-416683c9/dispatcher/broker"
)

const (
	// intervalJitter is the share by which a fixed interval is lengthened or shortened at random.
	intervalJitter = 0.2
	// awayPause is about how long to wait before a call is retried because a queue is away. A try is cheap.
	awayPause = 1500 * time.Millisecond
)

// reconnectPauses returns the pauses between the tries of an outage.
func reconnectPauses(interval time.Duration) backoff.BackOff {
	if interval > 0 {
		return jittered(interval)
	}
	// Full jitter: with a factor of 1, package backoff draws from [0, 2x]. So x is half of the bound, which grows from
	// 0.5 s to 30 s.
	return newBackOff(250*time.Millisecond, 15*time.Second, 1)
}

// pacing yields the pauses between the tries to connect.
type pacing struct {
	backoff.BackOff
	grows bool // the user has set no interval
}

func newPacing(interval time.Duration) pacing {
	return pacing{reconnectPauses(interval), interval == 0}
}

// answered returns the pause before the next try after a node has accepted the connection. A failure after that is no
// reason for a long pause.
func (p pacing) answered() time.Duration {
	pause := p.NextBackOff()
	if p.grows {
		pause = min(pause, jittered(awayPause).NextBackOff())
	}
	return pause
}

// PauseAfter returns the next of the growing pauses. If a queue is away it returns a short one, so that its users go on
// soon after it is back.
func PauseAfter(err error, pauses interface{ NextBackOff() time.Duration }) time.Duration {
	pause := pauses.NextBackOff()
	if errors.Is(err, broker.ErrUnavailable) {
		pause = min(pause, jittered(awayPause).NextBackOff())
	}
	return pause
}

// RetryPauses returns the pauses between the tries of one call, growing from about 100 ms to 30 s.
func RetryPauses() *backoff.ExponentialBackOff {
	return newBackOff(100*time.Millisecond, 30*time.Second, 0.5)
}

// newBackOff returns an exponential backoff that never ends. Package backoff's own limit of 15 minutes would silently
// stop a reconnect loop.
func newBackOff(initial, most time.Duration, jitter float64) *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(initial), backoff.WithMaxInterval(most), backoff.WithMultiplier(2),
		backoff.WithRandomizationFactor(jitter), backoff.WithMaxElapsedTime(0))
}

// jittered is a fixed interval, varied at random by up to intervalJitter.
type jittered time.Duration

func (j jittered) NextBackOff() time.Duration {
	return time.Duration(float64(j) * (1 - intervalJitter + 2*intervalJitter*rand.Float64()))
}
func (j jittered) Reset() {}

// Sleep waits for d. It returns false if ctx ends first.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// WithGrace returns a context that ends d after ctx does, and not before. The last messages to the broker still need a
// moment when the time is up.
func WithGrace(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	graced, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if Sleep(graced, d) {
			cancel()
		}
	})
	return graced, func() { stop(); cancel() }
}
