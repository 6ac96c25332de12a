package dispatcher

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed-416683c9/dispatcher/broker"
)

// A policy that passes validate gives pauses within the bounds that its documentation states.
func TestIntervalsStayWithinTheirBounds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := RetryPolicy{
			InitialInterval: time.Duration(rapid.Int64Range(0, int64(broker.MaxDelay)).Draw(t, "initial")),
			MaxInterval:     time.Duration(rapid.Int64Range(0, int64(broker.MaxDelay)).Draw(t, "max")),
			Multiplier:      rapid.SampledFrom([]float64{0, 1, 1.5, 2, 1000}).Draw(t, "multiplier"),
			Jitter:          rapid.SampledFrom([]float64{-1, 0, 0.5, 1}).Draw(t, "jitter"),
		}
		if p.validate("p") != nil {
			t.Skip("not valid")
		}
		d := p.withDefaults()
		n := rapid.IntRange(1, math.MaxInt).Draw(t, "attempt")
		got := d.Interval(n)
		least := time.Duration(float64(d.InitialInterval) * (1 - d.Jitter) * 0.999)
		most := time.Duration(float64(d.MaxInterval)*(1+d.Jitter)*1.001) + 1
		if got < least || got > most || got > broker.MaxDelay {
			t.Fatalf("%+v: %v after attempt %d, want %v to %v", *d, got, n, least, most)
		}
	})
}

func TestAbsurdPoliciesAreRefusedByName(t *testing.T) {
	t.Parallel()
	for field, p := range map[string]RetryPolicy{
		"InitialInterval is negative":    {InitialInterval: -1},
		"InitialInterval is 8785h0m0s":   {InitialInterval: 8785 * time.Hour, MaxInterval: 8785 * time.Hour},
		"MaxInterval is negative":        {MaxInterval: -1},
		"MaxInterval is 1s":              {InitialInterval: time.Minute, MaxInterval: time.Second},
		"MaxInterval is 1ms":             {MaxInterval: time.Millisecond}, // the default of InitialInterval is 1 s
		"Multiplier is 0.5":              {Multiplier: 0.5},
		"Multiplier is -2":               {Multiplier: -2},
		"Multiplier is NaN":              {Multiplier: math.NaN()},
		"Multiplier is +Inf":             {Multiplier: math.Inf(1)},
		"Jitter is 1.5":                  {Jitter: 1.5},
		"Jitter is NaN":                  {Jitter: math.NaN()},
		"MaxAge is negative":             {MaxAge: -1},
		"InitialInterval is negative\nX": {InitialInterval: -1, MaxAge: -1}, // both at once
	} {
		err := p.validate("X")
		want, several := strings.CutSuffix(field, "\nX")
		if err == nil || !strings.Contains(err.Error(), "X."+want) || several && !strings.Contains(err.Error(), "MaxAge") {
			t.Errorf("%+v: got %v, want %q", p, err, field)
		}
		if err := (&WorkerConfig{Name: "w", Queue: "q", Retry: &p}).validate(); err == nil {
			t.Errorf("a worker accepts %+v", p)
		}
		if err := (&ServerConfig{Exchange: "e", DefaultRoutingKey: "k", Retry: &p}).validate(); err == nil {
			t.Errorf("a server accepts %+v", p)
		}
		if _, err := (&Server{}).planTasks(&WorkerConfig{}, map[string]TaskConfig{"t": {Function: func() {}, Retry: &p}}); err == nil || !strings.Contains(err.Error(), `task "t"`) {
			t.Errorf("a task accepts %+v: %v", p, err)
		}
	}
}

func TestTheNearestPolicyCounts(t *testing.T) {
	t.Parallel()
	attempts := func(s, w, c *RetryPolicy) int {
		plans, err := (&Server{cfg: ServerConfig{Retry: s}}).planTasks(&WorkerConfig{Retry: w}, map[string]TaskConfig{"t": {Function: func() {}, Retry: c}})
		if err != nil {
			t.Fatal(err)
		}
		if p := plans["t"].Retry; p != nil {
			return p.MaxAttempts
		}
		return 1
	}
	one, two, three := &RetryPolicy{MaxAttempts: 11}, &RetryPolicy{MaxAttempts: 12}, &RetryPolicy{MaxAttempts: 13}
	for _, c := range []struct{ got, want int }{
		{attempts(nil, nil, nil), 1}, {attempts(one, nil, nil), 11}, {attempts(one, two, nil), 12}, {attempts(one, two, three), 13}, {attempts(nil, nil, three), 13},
	} {
		if c.got != c.want {
			t.Errorf("%d attempts, want %d", c.got, c.want)
		}
	}
}
