package verdict

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/record"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	three := (&Policy{MaxAttempts: 3, InitialInterval: time.Minute, Jitter: -1}).WithDefaults()
	endless := (&Policy{MaxAttempts: -1, InitialInterval: time.Minute, Multiplier: 1, Jitter: -1, MaxAge: time.Hour}).WithDefaults()
	no := OutcomeOf(errors.New("no"))
	permanent, discard := backoff.Permanent(no.Err), &DiscardError{no.Err}
	after := func(d time.Duration, err error) error { return &RetryAfterError{d, err} }
	for name, c := range map[string]struct {
		a      Attempt
		p      *Policy
		want   Action
		reason string
		delay  time.Duration
	}{
		"done":                       {Attempt{Outcome: OutcomeOf(nil)}, three, Ack, "", 0},
		"done late":                  {Attempt{Outcome: OutcomeOf(nil), Late: true}, three, Ack, "", 0},
		"done while stopping":        {Attempt{Outcome: OutcomeOf(nil), Shutdown: true}, three, Ack, "", 0},
		"no policy":                  {Attempt{Outcome: no, Number: 1}, nil, ToDeadLetters, "failed", 0},
		"no policy, late":            {Attempt{Outcome: no, Number: 1, Late: true}, nil, ToDeadLetters, "timeout", 0},
		"first":                      {Attempt{Outcome: no, Number: 1}, three, RetryLater, "", time.Minute},
		"second":                     {Attempt{Outcome: no, Number: 2}, three, RetryLater, "", 2 * time.Minute},
		"last":                       {Attempt{Outcome: no, Number: 3}, three, ToDeadLetters, "failed", 0},
		"beyond the last":            {Attempt{Outcome: no, Number: 1 << 30}, three, ToDeadLetters, "failed", 0},
		"late":                       {Attempt{Outcome: no, Number: 1, Late: true}, three, RetryLater, "", time.Minute},
		"late, last":                 {Attempt{Outcome: no, Number: 3, Late: true}, three, ToDeadLetters, "timeout", 0},
		"abandoned":                  {Attempt{Outcome: OutcomeOf(errors.New("still running")), Number: 1, Late: true, Abandoned: true}, three, ToDeadLetters, "timeout", 0},
		"while stopping":             {Attempt{Outcome: no, Number: 1, Shutdown: true}, three, Release, "", 0},
		"late while stopping":        {Attempt{Outcome: no, Number: 1, Shutdown: true, Late: true}, three, RetryLater, "", time.Minute},
		"permanent":                  {Attempt{Outcome: OutcomeOf(permanent), Number: 1}, three, ToDeadLetters, "permanent", 0},
		"discard":                    {Attempt{Outcome: OutcomeOf(discard), Number: 1}, nil, Discard, "", 0},
		"discard, late":              {Attempt{Outcome: OutcomeOf(discard), Number: 1, Late: true}, three, Discard, "", 0},
		"after":                      {Attempt{Outcome: OutcomeOf(after(time.Hour, no.Err)), Number: 1}, three, RetryLater, "", time.Hour},
		"after, no policy":           {Attempt{Outcome: OutcomeOf(after(time.Hour, nil)), Number: 99}, nil, RetryLater, "", time.Hour},
		"after, last":                {Attempt{Outcome: OutcomeOf(after(time.Hour, no.Err)), Number: 3}, three, ToDeadLetters, "failed", 0},
		"first after one that asked": {Attempt{Outcome: no, Number: 2, Asked: 1}, three, RetryLater, "", time.Minute},
		"last after one that asked":  {Attempt{Outcome: no, Number: 3, Asked: 1}, three, ToDeadLetters, "failed", 0},
		"after a year":               {Attempt{Outcome: OutcomeOf(after(broker.MaxDelay, no.Err)), Number: 1}, three, RetryLater, "", broker.MaxDelay},
		"after no time":              {Attempt{Outcome: OutcomeOf(after(0, no.Err)), Number: 1}, three, RetryLater, "", 0},
		"endless":                    {Attempt{Outcome: no, Number: 1000, First: now.Add(-59 * time.Minute)}, endless, RetryLater, "", time.Minute},
		"too old":                    {Attempt{Outcome: no, Number: 2, First: now.Add(-60 * time.Minute)}, endless, ToDeadLetters, "failed", 0},
		"would expire":               {Attempt{Outcome: no, Number: 1, Expires: now.Add(time.Minute)}, three, ToDeadLetters, "expired", 0},
		"would not expire":           {Attempt{Outcome: no, Number: 1, Expires: now.Add(time.Minute + 1)}, three, RetryLater, "", time.Minute},
		"permanent, wrapped":         {Attempt{Outcome: OutcomeOf(fmt.Errorf("wrapped: %w", permanent)), Number: 1}, three, ToDeadLetters, "permanent", 0},
	} {
		if c.a.Now = now; c.a.First.IsZero() {
			c.a.First = now
		}
		v := Judge(c.a, c.p)
		if v.Action != c.want || v.Reason != c.reason || v.Delay != c.delay {
			t.Errorf("%s: %s %q after %v, want %s %q after %v", name, v.Action, v.Reason, v.Delay, c.want, c.reason, c.delay)
		}
		if v.Text == "" {
			t.Errorf("%s: no text", name)
		}
	}
}

// The text of a late attempt mentions the timeout once.
func TestTheTextOfALateAttempt(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"task timeout of 2s":                               context.DeadlineExceeded,
		"task timeout of 2s: ":                             errors.New(""),
		"task timeout of 2s: fetch x":                      fmt.Errorf("fetch x: %w", context.DeadlineExceeded),
		"task timeout of 2s: fetch y":                      fmt.Errorf("fetch y: %w", fault.ErrTimeout),
		"task timeout of 2s: connection reset":             errors.New("connection reset"),
		"task timeout of 2s: context deadline exceeded: z": fmt.Errorf("%w: z", context.DeadlineExceeded),
	} {
		v := Judge(Attempt{Outcome: OutcomeOf(err), Number: 1, Late: true, Timeout: 2 * time.Second}, nil)
		if v.Text != want {
			t.Errorf("%v: %q, want %q", err, v.Text, want)
		}
	}
	v := Judge(Attempt{Outcome: OutcomeOf(errors.New("still running")), Number: 1, Late: true, Abandoned: true, Timeout: 2 * time.Second}, nil)
	if want := "task timeout of 2s: still running 1s later; abandoned"; v.Text != want {
		t.Errorf("%q, want %q", v.Text, want)
	}
	if v := Judge(Attempt{Outcome: OutcomeOf(fault.ErrTimeout), Number: 1, Late: true, Timeout: 2 * time.Second}, nil); v.Text != "task timeout of 2s" {
		t.Errorf("%q", v.Text)
	}
}

func TestJudgeUnknown(t *testing.T) {
	t.Parallel()
	now := time.Now()
	o := OutcomeOf(fault.ErrUnknownTask)
	for misses, want := range map[int]time.Duration{0: 100 * time.Millisecond, 1: 200 * time.Millisecond, 8: 25600 * time.Millisecond, 9: 30 * time.Second, 1 << 30: 30 * time.Second} {
		if v := Unknown(record.History{UnknownCount: misses}, false, now, time.Hour, o); v.Action != Postpone || v.Delay != want || !v.Unknown {
			t.Errorf("missed %d times: %s after %v, want %v", misses, v.Action, v.Delay, want)
		}
	}
	for name, v := range map[string]Verdict{
		"old enough": Unknown(record.History{UnknownCount: 3, UnknownAt: now.Add(-time.Hour)}, true, now, time.Hour, o),
		"never":      Unknown(record.History{}, false, now, -1, o),
	} {
		if v.Action != ToDeadLetters || v.Reason != "unknown_task" {
			t.Errorf("%s: %s %q", name, v.Action, v.Reason)
		}
	}
	if v := Unknown(record.History{Losses: 4, UnknownCount: 3}, true, now, time.Hour, o); v.Action != ReturnToSuspects || v.Losses != 4 || !v.Unknown {
		t.Errorf("a suspect: %s with %d losses", v.Action, v.Losses)
	}
	// Neither a clock that is ahead nor a forged header may keep the task for ever.
	if v := Unknown(record.History{UnknownAt: now.Add(100 * time.Hour)}, false, now, time.Hour, o); v.Action != Postpone {
		t.Errorf("missed in the future: %s", v.Action)
	}
}

func TestJudgeLosses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		before, now int
		suspect     bool
		want        Action // "" means that the task runs
		losses      int
	}{
		{0, 0, false, "", 0},
		{1, 0, false, "", 0},
		{0, 1, false, MoveToBack, 1},
		{0, 2, false, MoveToSuspects, 2},
		{1, 1, false, MoveToSuspects, 2},
		{99, 1, false, MoveToSuspects, 2}, // only losses while it runs alone lead to a dead letter
		{2, 0, true, "", 0},
		{2, 1, true, MoveToSuspects, 3},
		{3, 1, true, MoveToSuspects, 4},
		{4, 1, true, ToDeadLetters, 0},
		{0, 1, true, MoveToSuspects, 3}, // moved there by hand
		{0, 3, true, ToDeadLetters, 0},
	} {
		v, run := Losses(record.History{Losses: c.before}, c.now, c.suspect)
		if run != (c.want == "") || v.Action != c.want || v.Losses != c.losses {
			t.Errorf("%+v: run %v, %s with %d", c, run, v.Action, v.Losses)
		}
	}
}
