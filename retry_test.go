package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"pgregory.net/rapid"
)

func TestIntervalsGrowUpToTheLongest(t *testing.T) {
	t.Parallel()
	p := (&RetryPolicy{InitialInterval: time.Second, MaxInterval: time.Minute, Multiplier: 3, Jitter: -1}).withDefaults()
	for n, want := range []time.Duration{0, 1, 3, 9, 27, 60, 60} {
		if n > 0 && p.interval(n) != want*time.Second {
			t.Errorf("after attempt %d: %v, want %v", n, p.interval(n), want*time.Second)
		}
	}
	if d := p.interval(math.MaxInt); d != time.Minute {
		t.Errorf("after the last attempt of all: %v", d)
	}
}

// Whatever passes validate gives pauses within the bounds that its text states.
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
		got := d.interval(n)
		least := time.Duration(float64(d.InitialInterval) * (1 - d.Jitter) * 0.999)
		most := time.Duration(float64(d.MaxInterval)*(1+d.Jitter)*1.001) + 1
		if got < least || got > most || got > broker.MaxDelay {
			t.Fatalf("%+v: %v after attempt %d, want %v to %v", *d, got, n, least, most)
		}
	})
}

func TestPolicyDefaults(t *testing.T) {
	t.Parallel()
	want := RetryPolicy{MaxAttempts: 5, InitialInterval: time.Second, MaxInterval: time.Hour, Multiplier: 2, Jitter: 0.2}
	if got := (&RetryPolicy{}).withDefaults(); *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
	if got := (&RetryPolicy{InitialInterval: 2 * time.Hour}).withDefaults(); got.MaxInterval != 2*time.Hour {
		t.Errorf("longest pause %v, want that of the first", got.MaxInterval)
	}
	if (*RetryPolicy)(nil).withDefaults() != nil {
		t.Error("no policy became one")
	}
}

func TestAbsurdPoliciesAreRefusedByName(t *testing.T) {
	t.Parallel()
	for field, p := range map[string]RetryPolicy{
		"InitialInterval is negative":    {InitialInterval: -1},
		"InitialInterval is 8785h0m0s":   {InitialInterval: 8785 * time.Hour, MaxInterval: 8785 * time.Hour},
		"MaxInterval is negative":        {MaxInterval: -1},
		"MaxInterval is 1s":              {InitialInterval: time.Minute, MaxInterval: time.Second},
		"MaxInterval is 1ms":             {MaxInterval: time.Millisecond}, // the first is 1 s
		"Multiplier is 0.5":              {Multiplier: 0.5},
		"Multiplier is -2":               {Multiplier: -2},
		"Multiplier is NaN":              {Multiplier: math.NaN()},
		"Multiplier is +Inf":             {Multiplier: math.Inf(1)},
		"Jitter is 1.5":                  {Jitter: 1.5},
		"Jitter is NaN":                  {Jitter: math.NaN()},
		"MaxAge is negative":             {MaxAge: -1},
		"InitialInterval is negative\nX": {InitialInterval: -1, MaxAge: -1}, // all at once
	} {
		err := p.validate("X")
		want, several := strings.CutSuffix(field, "\nX")
		if err == nil || !strings.Contains(err.Error(), "X."+want) || several && !strings.Contains(err.Error(), "MaxAge") {
			t.Errorf("%+v: got %v, want %q", p, err, field)
		}
		if err := (&WorkerConfig{Name: "w", Queue: "q", Retry: &p}).validate(); err == nil {
			t.Errorf("a worker takes %+v", p)
		}
		if err := (&ServerConfig{Exchange: "e", DefaultRoutingKey: "k", Retry: &p}).validate(); err == nil {
			t.Errorf("a server takes %+v", p)
		}
		if _, err := (&Server{}).planTasks(&WorkerConfig{}, map[string]TaskConfig{"t": {Function: func() {}, Retry: &p}}); err == nil || !strings.Contains(err.Error(), `task "t"`) {
			t.Errorf("a task takes %+v: %v", p, err)
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
		if p := plans["t"].retry; p != nil {
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

func TestJudge(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	three := (&RetryPolicy{MaxAttempts: 3, InitialInterval: time.Minute, Jitter: -1}).withDefaults()
	endless := (&RetryPolicy{MaxAttempts: -1, InitialInterval: time.Minute, Multiplier: 1, Jitter: -1, MaxAge: time.Hour}).withDefaults()
	no := outcomeOf(errors.New("no"))
	for name, c := range map[string]struct {
		a      attempt
		p      *RetryPolicy
		want   action
		reason string
		delay  time.Duration
	}{
		"done":                        {attempt{outcome: outcomeOf(nil)}, three, ack, "", 0},
		"done late":                   {attempt{outcome: outcomeOf(nil), late: true}, three, ack, "", 0},
		"done while stopping":         {attempt{outcome: outcomeOf(nil), shutdown: true}, three, ack, "", 0},
		"no policy":                   {attempt{outcome: no, number: 1}, nil, toDeadLetters, "failed", 0},
		"no policy, late":             {attempt{outcome: no, number: 1, late: true}, nil, toDeadLetters, "timeout", 0},
		"first":                       {attempt{outcome: no, number: 1}, three, retryLater, "", time.Minute},
		"second":                      {attempt{outcome: no, number: 2}, three, retryLater, "", 2 * time.Minute},
		"last":                        {attempt{outcome: no, number: 3}, three, toDeadLetters, "failed", 0},
		"beyond the last":             {attempt{outcome: no, number: 1 << 30}, three, toDeadLetters, "failed", 0},
		"late":                        {attempt{outcome: no, number: 1, late: true}, three, retryLater, "", time.Minute},
		"late, last":                  {attempt{outcome: no, number: 3, late: true}, three, toDeadLetters, "timeout", 0},
		"abandoned":                   {attempt{outcome: outcomeOf(errAbandoned), number: 1, late: true, abandoned: true}, three, toDeadLetters, "timeout", 0},
		"while stopping":              {attempt{outcome: no, number: 1, shutdown: true}, three, release, "", 0},
		"late while stopping":         {attempt{outcome: no, number: 1, shutdown: true, late: true}, three, retryLater, "", time.Minute},
		"permanent":                   {attempt{outcome: outcomeOf(Permanent(no.err)), number: 1}, three, toDeadLetters, "permanent", 0},
		"discard":                     {attempt{outcome: outcomeOf(Discard(no.err)), number: 1}, nil, discard, "", 0},
		"discard, late":               {attempt{outcome: outcomeOf(Discard(no.err)), number: 1, late: true}, three, discard, "", 0},
		"after":                       {attempt{outcome: outcomeOf(RetryAfter(time.Hour, no.err)), number: 1}, three, retryLater, "", time.Hour},
		"after, no policy":            {attempt{outcome: outcomeOf(RetryAfter(time.Hour, nil)), number: 99}, nil, retryLater, "", time.Hour},
		"after, last":                 {attempt{outcome: outcomeOf(RetryAfter(time.Hour, no.err)), number: 3}, three, toDeadLetters, "failed", 0},
		"first after one that asked":  {attempt{outcome: no, number: 2, asked: 1}, three, retryLater, "", time.Minute},
		"last after one that asked":   {attempt{outcome: no, number: 3, asked: 1}, three, toDeadLetters, "failed", 0},
		"after, absurd":               {attempt{outcome: outcomeOf(RetryAfter(math.MaxInt64, no.err)), number: 1}, three, retryLater, "", broker.MaxDelay},
		"after, negative":             {attempt{outcome: outcomeOf(RetryAfter(math.MinInt64, no.err)), number: 1}, three, retryLater, "", 0},
		"endless":                     {attempt{outcome: no, number: 1000, first: now.Add(-59 * time.Minute)}, endless, retryLater, "", time.Minute},
		"too old":                     {attempt{outcome: no, number: 2, first: now.Add(-60 * time.Minute)}, endless, toDeadLetters, "failed", 0},
		"would expire":                {attempt{outcome: no, number: 1, expires: now.Add(time.Minute)}, three, toDeadLetters, "expired", 0},
		"would not expire":            {attempt{outcome: no, number: 1, expires: now.Add(time.Minute + 1)}, three, retryLater, "", time.Minute},
		"a panic of a permanent kind": {attempt{outcome: outcomeOf(&PanicError{Value: Permanent(no.err)}), number: 1}, three, toDeadLetters, "permanent", 0},
	} {
		if c.a.now = now; c.a.first.IsZero() {
			c.a.first = now
		}
		v := judge(c.a, c.p)
		if v.action != c.want || v.reason != c.reason || v.delay != c.delay {
			t.Errorf("%s: %s %q after %v, want %s %q after %v", name, v.action, v.reason, v.delay, c.want, c.reason, c.delay)
		}
		if v.text == "" {
			t.Errorf("%s: no text", name)
		}
	}
}

// hostileError has methods that must not be run where nobody watches.
type hostileError struct{}

func (hostileError) Error() string { panic("text") }
func (hostileError) As(any) bool   { panic("as") }
func (hostileError) Unwrap() error { panic("unwrap") }

func TestAnErrorThatPanicsAsksForNothing(t *testing.T) {
	t.Parallel()
	if o := outcomeOf(hostileError{}); o.wish != (wish{}) || o.text == "" {
		t.Errorf("got %+v", o)
	}
}

func TestWishesSurviveWrapping(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for want, err := range map[wish]error{
		{}:                                boom,
		{kind: wishPermanent}:             fmt.Errorf("a: %w", errors.Join(Discard(boom), RetryAfter(1, boom), Permanent(boom))),
		{wishRetryAfter, time.Second}:     fmt.Errorf("b: %w", errors.Join(boom, RetryAfter(time.Second, boom))),
		{kind: wishDiscard}:               fmt.Errorf("c: %w", RetryAfter(time.Hour, fmt.Errorf("d: %w", Discard(boom)))),
		{wishRetryAfter, 2 * time.Second}: RetryAfter(2*time.Second, nil),
	} {
		if got := wishOf(err); got != want {
			t.Errorf("%v: got %+v, want %+v", err, got, want)
		}
		if want.after != 2*time.Second && !errors.Is(err, boom) {
			t.Errorf("%v hides its cause", err)
		}
	}
	if Permanent(nil) != nil || Discard(nil) != nil {
		t.Error("nil became an error")
	}
	if RetryAfter(0, nil).Error() == "" {
		t.Error("no text")
	}
}

func TestJudgeUnknown(t *testing.T) {
	t.Parallel()
	now := time.Now()
	o := outcomeOf(ErrUnknownTask)
	for misses, want := range map[int]time.Duration{0: 100 * time.Millisecond, 1: 200 * time.Millisecond, 8: 25600 * time.Millisecond, 9: 30 * time.Second, 1 << 30: 30 * time.Second} {
		if v := judgeUnknown(record.History{Misses: misses}, false, now, time.Hour, o); v.action != postpone || v.delay != want || !v.missed {
			t.Errorf("missed %d times: %s after %v, want %v", misses, v.action, v.delay, want)
		}
	}
	for name, v := range map[string]verdict{
		"old enough": judgeUnknown(record.History{Misses: 3, Missed: now.Add(-time.Hour)}, true, now, time.Hour, o),
		"never":      judgeUnknown(record.History{}, false, now, -1, o),
	} {
		if v.action != toDeadLetters || v.reason != "unknown_task" {
			t.Errorf("%s: %s %q", name, v.action, v.reason)
		}
	}
	if v := judgeUnknown(record.History{Losses: 4, Misses: 3}, true, now, time.Hour, o); v.action != putOff || v.losses != 4 || !v.missed {
		t.Errorf("a suspect: %s with %d losses", v.action, v.losses)
	}
	// A clock that is ahead, or a forged header, must not keep it for ever.
	if v := judgeUnknown(record.History{Missed: now.Add(100 * time.Hour)}, false, now, time.Hour, o); v.action != postpone {
		t.Errorf("missed in the future: %s", v.action)
	}
}

func TestJudgeLosses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		before, now int
		suspect     bool
		want        action // "" = run
		losses      int
	}{
		{0, 0, false, "", 0},
		{1, 0, false, "", 0},
		{0, 1, false, toBack, 1},
		{0, 2, false, toSuspects, 2},
		{1, 1, false, toSuspects, 2},
		{99, 1, false, toSuspects, 2}, // only what was lost alone counts for the last word
		{2, 0, true, "", 0},
		{2, 1, true, toSuspects, 3},
		{3, 1, true, toSuspects, 4},
		{4, 1, true, toDeadLetters, 0},
		{0, 1, true, toSuspects, 3}, // put there by somebody
		{0, 3, true, toDeadLetters, 0},
	} {
		v, run := judgeLosses(record.History{Losses: c.before}, c.now, c.suspect)
		if run != (c.want == "") || v.action != c.want || v.losses != c.losses {
			t.Errorf("%+v: run %v, %s with %d", c, run, v.action, v.losses)
		}
	}
}

// What a late attempt says names the timeout once.
func TestTheTextOfALateAttempt(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"task timeout of 2s":                               context.DeadlineExceeded,
		"task timeout of 2s: ":                             errors.New(""),
		"task timeout of 2s: fetch x":                      fmt.Errorf("fetch x: %w", context.DeadlineExceeded),
		"task timeout of 2s: fetch y":                      fmt.Errorf("fetch y: %w", ErrTimeout),
		"task timeout of 2s: connection reset":             errors.New("connection reset"),
		"task timeout of 2s: context deadline exceeded: z": fmt.Errorf("%w: z", context.DeadlineExceeded),
	} {
		v := judge(attempt{outcome: outcomeOf(err), number: 1, late: true, timeout: 2 * time.Second}, nil)
		if v.text != want {
			t.Errorf("%v: %q, want %q", err, v.text, want)
		}
	}
	v := judge(attempt{outcome: outcomeOf(errAbandoned), number: 1, late: true, abandoned: true, timeout: 2 * time.Second}, nil)
	if want := "task timeout of 2s: still running 1s later; abandoned"; v.text != want {
		t.Errorf("%q, want %q", v.text, want)
	}
	if v := judge(attempt{outcome: outcomeOf(ErrTimeout), number: 1, late: true, timeout: 2 * time.Second}, nil); v.text != "task timeout of 2s" {
		t.Errorf("%q", v.text)
	}
}
