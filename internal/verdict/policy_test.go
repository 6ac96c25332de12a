package verdict

import (
	"math"
	"testing"
	"time"
)

func TestIntervalsGrowUpToTheLongest(t *testing.T) {
	t.Parallel()
	p := (&Policy{InitialInterval: time.Second, MaxInterval: time.Minute, Multiplier: 3, Jitter: -1}).WithDefaults()
	for n, want := range []time.Duration{0, 1, 3, 9, 27, 60, 60} {
		if n > 0 && p.Interval(n) != want*time.Second {
			t.Errorf("after attempt %d: %v, want %v", n, p.Interval(n), want*time.Second)
		}
	}
	if d := p.Interval(math.MaxInt); d != time.Minute {
		t.Errorf("after the highest attempt number: %v", d)
	}
}

func TestPolicyDefaults(t *testing.T) {
	t.Parallel()
	want := Policy{MaxAttempts: 5, InitialInterval: time.Second, MaxInterval: time.Hour, Multiplier: 2, Jitter: 0.2}
	if got := (&Policy{}).WithDefaults(); *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
	if got := (&Policy{InitialInterval: 2 * time.Hour}).WithDefaults(); got.MaxInterval != 2*time.Hour {
		t.Errorf("longest pause %v, want that of the first", got.MaxInterval)
	}
	if (*Policy)(nil).WithDefaults() != nil {
		t.Error("a nil policy became a policy")
	}
}
