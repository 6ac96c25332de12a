package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

func TestIntervalsGrowUpToTheLongest(t *testing.T) {
	t.Parallel()
	p := (&RetryPolicy{InitialInterval: time.Second, MaxInterval: time.Minute, Multiplier: 3, Jitter: -1}).withDefaults()
	for n, want := range []time.Duration{0, 1, 3, 9, 27, 60, 60} {
		if n > 0 && p.Interval(n) != want*time.Second {
			t.Errorf("after attempt %d: %v, want %v", n, p.Interval(n), want*time.Second)
		}
	}
	if d := p.Interval(math.MaxInt); d != time.Minute {
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
		got := d.Interval(n)
		least := time.Duration(float64(d.InitialInterval) * (1 - d.Jitter) * 0.999)
		most := time.Duration(float64(d.MaxInterval)*(1+d.Jitter)*1.001) + 1
		if got < least || got > most || got > broker.MaxDelay {
			t.Fatalf("%+v: %v after attempt %d, want %v to %v", *d, got, n, least, most)
		}
	})
}

func TestPolicyDefaults(t *testing.T) {
	t.Parallel()
	want := verdict.Policy{MaxAttempts: 5, InitialInterval: time.Second, MaxInterval: time.Hour, Multiplier: 2, Jitter: 0.2}
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

func TestJudge(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	three := (&RetryPolicy{MaxAttempts: 3, InitialInterval: time.Minute, Jitter: -1}).withDefaults()
	endless := (&RetryPolicy{MaxAttempts: -1, InitialInterval: time.Minute, Multiplier: 1, Jitter: -1, MaxAge: time.Hour}).withDefaults()
	no := verdict.OutcomeOf(errors.New("no"))
	for name, c := range map[string]struct {
		a      verdict.Attempt
		p      *verdict.Policy
		want   verdict.Action
		reason string
		delay  time.Duration
	}{
		"done":                        {verdict.Attempt{Outcome: verdict.OutcomeOf(nil)}, three, verdict.Ack, "", 0},
		"done late":                   {verdict.Attempt{Outcome: verdict.OutcomeOf(nil), Late: true}, three, verdict.Ack, "", 0},
		"done while stopping":         {verdict.Attempt{Outcome: verdict.OutcomeOf(nil), Shutdown: true}, three, verdict.Ack, "", 0},
		"no policy":                   {verdict.Attempt{Outcome: no, Number: 1}, nil, verdict.ToDeadLetters, "failed", 0},
		"no policy, late":             {verdict.Attempt{Outcome: no, Number: 1, Late: true}, nil, verdict.ToDeadLetters, "timeout", 0},
		"first":                       {verdict.Attempt{Outcome: no, Number: 1}, three, verdict.RetryLater, "", time.Minute},
		"second":                      {verdict.Attempt{Outcome: no, Number: 2}, three, verdict.RetryLater, "", 2 * time.Minute},
		"last":                        {verdict.Attempt{Outcome: no, Number: 3}, three, verdict.ToDeadLetters, "failed", 0},
		"beyond the last":             {verdict.Attempt{Outcome: no, Number: 1 << 30}, three, verdict.ToDeadLetters, "failed", 0},
		"late":                        {verdict.Attempt{Outcome: no, Number: 1, Late: true}, three, verdict.RetryLater, "", time.Minute},
		"late, last":                  {verdict.Attempt{Outcome: no, Number: 3, Late: true}, three, verdict.ToDeadLetters, "timeout", 0},
		"abandoned":                   {verdict.Attempt{Outcome: verdict.OutcomeOf(errors.New("abandoned")), Number: 1, Late: true, Abandoned: true}, three, verdict.ToDeadLetters, "timeout", 0},
		"while stopping":              {verdict.Attempt{Outcome: no, Number: 1, Shutdown: true}, three, verdict.Release, "", 0},
		"late while stopping":         {verdict.Attempt{Outcome: no, Number: 1, Shutdown: true, Late: true}, three, verdict.RetryLater, "", time.Minute},
		"permanent":                   {verdict.Attempt{Outcome: verdict.OutcomeOf(Permanent(no.Err)), Number: 1}, three, verdict.ToDeadLetters, "permanent", 0},
		"discard":                     {verdict.Attempt{Outcome: verdict.OutcomeOf(Discard(no.Err)), Number: 1}, nil, verdict.Discard, "", 0},
		"discard, late":               {verdict.Attempt{Outcome: verdict.OutcomeOf(Discard(no.Err)), Number: 1, Late: true}, three, verdict.Discard, "", 0},
		"after":                       {verdict.Attempt{Outcome: verdict.OutcomeOf(RetryAfter(time.Hour, no.Err)), Number: 1}, three, verdict.RetryLater, "", time.Hour},
		"after, no policy":            {verdict.Attempt{Outcome: verdict.OutcomeOf(RetryAfter(time.Hour, nil)), Number: 99}, nil, verdict.RetryLater, "", time.Hour},
		"after, last":                 {verdict.Attempt{Outcome: verdict.OutcomeOf(RetryAfter(time.Hour, no.Err)), Number: 3}, three, verdict.ToDeadLetters, "failed", 0},
		"first after one that asked":  {verdict.Attempt{Outcome: no, Number: 2, Asked: 1}, three, verdict.RetryLater, "", time.Minute},
		"last after one that asked":   {verdict.Attempt{Outcome: no, Number: 3, Asked: 1}, three, verdict.ToDeadLetters, "failed", 0},
		"after, absurd":               {verdict.Attempt{Outcome: verdict.OutcomeOf(RetryAfter(math.MaxInt64, no.Err)), Number: 1}, three, verdict.RetryLater, "", broker.MaxDelay},
		"after, negative":             {verdict.Attempt{Outcome: verdict.OutcomeOf(RetryAfter(math.MinInt64, no.Err)), Number: 1}, three, verdict.RetryLater, "", 0},
		"endless":                     {verdict.Attempt{Outcome: no, Number: 1000, First: now.Add(-59 * time.Minute)}, endless, verdict.RetryLater, "", time.Minute},
		"too old":                     {verdict.Attempt{Outcome: no, Number: 2, First: now.Add(-60 * time.Minute)}, endless, verdict.ToDeadLetters, "failed", 0},
		"would expire":                {verdict.Attempt{Outcome: no, Number: 1, Expires: now.Add(time.Minute)}, three, verdict.ToDeadLetters, "expired", 0},
		"would not expire":            {verdict.Attempt{Outcome: no, Number: 1, Expires: now.Add(time.Minute + 1)}, three, verdict.RetryLater, "", time.Minute},
		"a panic of a permanent kind": {verdict.Attempt{Outcome: verdict.OutcomeOf(&PanicError{Value: Permanent(no.Err)}), Number: 1}, three, verdict.ToDeadLetters, "permanent", 0},
	} {
		if c.a.Now = now; c.a.First.IsZero() {
			c.a.First = now
		}
		v := verdict.Judge(c.a, c.p)
		if v.Action != c.want || v.Reason != c.reason || v.Delay != c.delay {
			t.Errorf("%s: %s %q after %v, want %s %q after %v", name, v.Action, v.Reason, v.Delay, c.want, c.reason, c.delay)
		}
		if v.Text == "" {
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
	if o := verdict.OutcomeOf(hostileError{}); o.Wish != (verdict.Wish{}) || o.Text == "" {
		t.Errorf("got %+v", o)
	}
}

func TestWishesSurviveWrapping(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for want, err := range map[verdict.Wish]error{
		{}:                            boom,
		{Kind: verdict.WishPermanent}: fmt.Errorf("a: %w", errors.Join(Discard(boom), RetryAfter(1, boom), Permanent(boom))),
		{Kind: verdict.WishRetryAfter, After: time.Second}:     fmt.Errorf("b: %w", errors.Join(boom, RetryAfter(time.Second, boom))),
		{Kind: verdict.WishDiscard}:                            fmt.Errorf("c: %w", RetryAfter(time.Hour, fmt.Errorf("d: %w", Discard(boom)))),
		{Kind: verdict.WishRetryAfter, After: 2 * time.Second}: RetryAfter(2*time.Second, nil),
	} {
		if got := verdict.WishOf(err); got != want {
			t.Errorf("%v: got %+v, want %+v", err, got, want)
		}
		if want.After != 2*time.Second && !errors.Is(err, boom) {
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
	o := verdict.OutcomeOf(ErrUnknownTask)
	for misses, want := range map[int]time.Duration{0: 100 * time.Millisecond, 1: 200 * time.Millisecond, 8: 25600 * time.Millisecond, 9: 30 * time.Second, 1 << 30: 30 * time.Second} {
		if v := verdict.Unknown(record.History{Misses: misses}, false, now, time.Hour, o); v.Action != verdict.Postpone || v.Delay != want || !v.Missed {
			t.Errorf("missed %d times: %s after %v, want %v", misses, v.Action, v.Delay, want)
		}
	}
	for name, v := range map[string]verdict.Verdict{
		"old enough": verdict.Unknown(record.History{Misses: 3, Missed: now.Add(-time.Hour)}, true, now, time.Hour, o),
		"never":      verdict.Unknown(record.History{}, false, now, -1, o),
	} {
		if v.Action != verdict.ToDeadLetters || v.Reason != "unknown_task" {
			t.Errorf("%s: %s %q", name, v.Action, v.Reason)
		}
	}
	if v := verdict.Unknown(record.History{Losses: 4, Misses: 3}, true, now, time.Hour, o); v.Action != verdict.PutOff || v.Losses != 4 || !v.Missed {
		t.Errorf("a suspect: %s with %d losses", v.Action, v.Losses)
	}
	// A clock that is ahead, or a forged header, must not keep it for ever.
	if v := verdict.Unknown(record.History{Missed: now.Add(100 * time.Hour)}, false, now, time.Hour, o); v.Action != verdict.Postpone {
		t.Errorf("missed in the future: %s", v.Action)
	}
}

func TestJudgeLosses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		before, now int
		suspect     bool
		want        verdict.Action // "" = run
		losses      int
	}{
		{0, 0, false, "", 0},
		{1, 0, false, "", 0},
		{0, 1, false, verdict.ToBack, 1},
		{0, 2, false, verdict.ToSuspects, 2},
		{1, 1, false, verdict.ToSuspects, 2},
		{99, 1, false, verdict.ToSuspects, 2}, // only what was lost alone counts for the last word
		{2, 0, true, "", 0},
		{2, 1, true, verdict.ToSuspects, 3},
		{3, 1, true, verdict.ToSuspects, 4},
		{4, 1, true, verdict.ToDeadLetters, 0},
		{0, 1, true, verdict.ToSuspects, 3}, // put there by somebody
		{0, 3, true, verdict.ToDeadLetters, 0},
	} {
		v, run := verdict.Losses(record.History{Losses: c.before}, c.now, c.suspect)
		if run != (c.want == "") || v.Action != c.want || v.Losses != c.losses {
			t.Errorf("%+v: run %v, %s with %d", c, run, v.Action, v.Losses)
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
		v := verdict.Judge(verdict.Attempt{Outcome: verdict.OutcomeOf(err), Number: 1, Late: true, Timeout: 2 * time.Second}, nil)
		if v.Text != want {
			t.Errorf("%v: %q, want %q", err, v.Text, want)
		}
	}
	v := verdict.Judge(verdict.Attempt{Outcome: verdict.OutcomeOf(errors.New("abandoned")), Number: 1, Late: true, Abandoned: true, Timeout: 2 * time.Second}, nil)
	if want := "task timeout of 2s: still running 1s later; abandoned"; v.Text != want {
		t.Errorf("%q, want %q", v.Text, want)
	}
	if v := verdict.Judge(verdict.Attempt{Outcome: verdict.OutcomeOf(ErrTimeout), Number: 1, Late: true, Timeout: 2 * time.Second}, nil); v.Text != "task timeout of 2s" {
		t.Errorf("%q", v.Text)
	}
}

// The root has the same words, with what they mean to a user.
func TestVerdictsUseTheRootsWords(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		ReasonFailed: verdict.ReasonFailed, ReasonPermanent: verdict.ReasonPermanent, ReasonTimeout: verdict.ReasonTimeout, ReasonExpired: verdict.ReasonExpired,
		ReasonUnknownTask: verdict.ReasonUnknownTask, ReasonCrashLoop: verdict.ReasonCrashLoop,
	} {
		if got != want {
			t.Errorf("%q, and the root has %q", got, want)
		}
	}
}
