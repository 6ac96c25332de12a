// Package verdict decides what becomes of a delivery: pure functions of how an attempt ended, its policy, and what the message says of its past.
package verdict

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/record"
)

// Attempt is how one call of a task's function ended.
type Attempt struct {
	Outcome             // what the function returned; a panic as *PanicError; nil = it did its work
	Late      bool      // it returned after its timeout, or not at all, and no shutdown had cancelled it before
	Abandoned bool      // it still runs
	Shutdown  bool      // the contexts of tasks had been cancelled because the worker stops
	Number    int       // of this attempt, from 1
	Asked     int       // earlier ones that ended with RetryAfter
	First     time.Time // when the first attempt began
	Expires   time.Time // zero = never
	Now       time.Time

	Timeout time.Duration // 0 = none
}

// Judge is the verdict on an attempt. Whoever returns without an error has done the work, also when late: to call that a
// failure would make somebody do it again.
func Judge(a Attempt, p *Policy) Verdict {
	reason, o := ReasonFailed, a.Outcome
	if a.Late {
		reason, o.Text = ReasonTimeout, timeoutText(a)
	}
	switch {
	case a.Err == nil:
		return Verdict{Action: Ack, Outcome: o}
	case a.Abandoned: // it must not run again while it still runs
		return DeadLetter(reason, o)
	case a.Shutdown && !a.Late:
		return Verdict{Action: Release, Outcome: o}
	case a.Wish.Kind == WishPermanent:
		return DeadLetter(ReasonPermanent, o)
	case a.Wish.Kind == WishDiscard:
		return Verdict{Action: Discard, Outcome: o}
	case p == nil && a.Wish.Kind != WishRetryAfter:
		return DeadLetter(reason, o)
	case p != nil && p.MaxAttempts > 0 && a.Number >= p.MaxAttempts:
		return DeadLetter(reason, o)
	}
	var delay time.Duration
	if a.Wish.Kind == WishRetryAfter {
		delay = a.Wish.After
	} else {
		delay = p.Interval(a.Number - a.Asked)
	}
	due := a.Now.Add(delay)
	if p != nil && p.MaxAge > 0 && due.Sub(a.First) > p.MaxAge {
		return DeadLetter(reason, o)
	}
	if !a.Expires.IsZero() && !due.Before(a.Expires) {
		o.Text = "would have expired before its next attempt: " + o.Text
		return DeadLetter(ReasonExpired, o)
	}
	return Verdict{Action: RetryLater, Delay: delay, Outcome: o}
}

// TimeoutWords is the text of the root's ErrTimeout.
const TimeoutWords = "task timeout"

// timeoutText is the text of an attempt that was late, which says so once: most functions return the error of their context.
func timeoutText(a Attempt) string {
	text := fmt.Sprintf("%s of %v", TimeoutWords, a.Timeout)
	if a.Abandoned {
		return fmt.Sprintf("%s: still running %v later; abandoned", text, Grace)
	}
	rest := ": " + a.Text
	for _, same := range []string{TimeoutWords, context.DeadlineExceeded.Error()} {
		rest = strings.TrimSuffix(rest, ": "+same)
	}
	return text + rest
}

// unknownDelays: the pauses of a task that no worker knows yet.
const (
	FirstUnknownDelay = 100 * time.Millisecond
	MaxUnknownDelay   = 30 * time.Second
)

// Unknown is the verdict on a task that this worker does not know. In a rolling deployment another one does, or will: it is
// put off, and kept for a person once maxAge has passed since it was first missed. Negative: at once.
//
// A suspect goes to the end of its line, uncharged. In the queue of all others a worker that knows it would run it beside them, and if it
// ends that one too, it would begin anew as a suspect, for ever.
func Unknown(h record.History, suspect bool, now time.Time, maxAge time.Duration, o Outcome) Verdict {
	if maxAge < 0 || now.Sub(h.MissedSince(now)) >= maxAge {
		return DeadLetter(ReasonUnknownTask, o)
	}
	if suspect {
		return Verdict{Action: PutOff, Missed: true, Losses: h.Losses, Outcome: o}
	}
	delay := MaxUnknownDelay
	if h.Misses < 16 { // beyond, the shift could overflow
		delay = min(FirstUnknownDelay<<h.Misses, MaxUnknownDelay)
	}
	return Verdict{Action: Postpone, Missed: true, Delay: delay, Outcome: o}
}

// ErrCrashLoop: the task was lost again and again while it ran alone: it may end the process that runs it.
var ErrCrashLoop = errors.New("lost with its worker or connection")

// MaxSuspectLosses is how many times a task may be lost while it runs alone, until it is taken for one that ends its worker.
const MaxSuspectLosses = 3

// SuspectAfter is how many losses make a task a suspect.
const SuspectAfter = 2

// Losses is the verdict on a delivery that was lost before; run = none, go on. losses is what the broker knows.
func Losses(h record.History, losses int, suspect bool) (v Verdict, run bool) {
	if losses <= 0 {
		return Verdict{}, true
	}
	if suspect {
		total := max(h.Losses, SuspectAfter) + losses
		if alone := total - SuspectAfter; alone >= MaxSuspectLosses {
			return DeadLetter(ReasonCrashLoop, OutcomeOf(fmt.Errorf("%w: %d times while it ran alone", ErrCrashLoop, alone))), false
		}
		return Verdict{Action: ToSuspects, Losses: total}, false
	}
	if h.Losses+losses < SuspectAfter {
		return Verdict{Action: ToBack, Losses: h.Losses + losses}, false
	}
	return Verdict{Action: ToSuspects, Losses: SuspectAfter}, false
}

// Grace is what a task has left to return after its context was cancelled, by its timeout or by a shutdown.
const Grace = time.Second
