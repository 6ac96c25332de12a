// Package verdict decides what becomes of a delivery. It consists of pure functions of how an attempt ended, its
// policy, and what the message says of its past.
package verdict

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/record"
)

// Attempt describes how one call of a task's function ended.
type Attempt struct {
	Outcome             // the returned error; a panic as *PanicError; nil = success
	Late      bool      // it returned after its timeout or not at all, and no shutdown cancelled it before
	Abandoned bool      // the call still runs
	Shutdown  bool      // the stopping worker had cancelled the contexts of tasks
	Number    int       // of this attempt, from 1
	Asked     int       // earlier attempts that ended with RetryAfter
	First     time.Time // when the first attempt began
	Expires   time.Time // zero = never
	Now       time.Time

	Timeout time.Duration // 0 = none
}

// Judge returns the verdict on an attempt. A function that returns no error has done the work, even if it is late. If
// that were a failure, the work would be done again.
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

// timeoutText returns the text of a late attempt. It mentions the timeout once, because most functions return the error
// of their context.
func timeoutText(a Attempt) string {
	text := fmt.Sprintf("%v of %v", fault.ErrTimeout, a.Timeout)
	if a.Abandoned {
		return fmt.Sprintf("%s: still running %v later; abandoned", text, Grace)
	}
	rest := ": " + a.Text
	for _, same := range []string{fault.ErrTimeout.Error(), context.DeadlineExceeded.Error()} {
		rest = strings.TrimSuffix(rest, ": "+same)
	}
	return text + rest
}

// The pauses of a task that no worker knows yet.
const (
	FirstUnknownDelay = 100 * time.Millisecond
	maxUnknownDelay   = 30 * time.Second
)

// Unknown returns the verdict on a task that this worker does not know. In a rolling deployment another worker knows
// it, or will, so the task is put off. Once maxAge has passed since it was first missed, it is kept for a person. A
// negative maxAge does that at once.
//
// A suspect goes to the end of its queue, uncharged. In the ordinary queue, a worker that knows it would run it beside
// other tasks. If it ended that worker too, it would start again as a suspect, for ever.
func Unknown(h record.History, suspect bool, now time.Time, maxAge time.Duration, o Outcome) Verdict {
	if maxAge < 0 || now.Sub(h.UnknownSince(now)) >= maxAge {
		return DeadLetter(ReasonUnknownTask, o)
	}
	if suspect {
		return Verdict{Action: ReturnToSuspects, Unknown: true, Losses: h.Losses, Outcome: o}
	}
	delay := maxUnknownDelay
	if h.UnknownCount < 16 { // a larger shift could overflow
		delay = min(FirstUnknownDelay<<h.UnknownCount, maxUnknownDelay)
	}
	return Verdict{Action: Postpone, Unknown: true, Delay: delay, Outcome: o}
}

// maxSuspectLosses is how many times a task may be lost while it runs alone, until it is assumed to end its workers.
const maxSuspectLosses = 3

// suspectAfter is how many losses make a task a suspect.
const suspectAfter = 2

// Losses returns the verdict on a delivery that was lost before. If run is true, there is no verdict and the delivery
// goes on. losses is the count that the broker knows.
func Losses(h record.History, losses int, suspect bool) (v Verdict, run bool) {
	if losses <= 0 {
		return Verdict{}, true
	}
	if suspect {
		total := max(h.Losses, suspectAfter) + losses
		if alone := total - suspectAfter; alone >= maxSuspectLosses {
			err := fmt.Errorf("%w: %d times while it ran alone", fault.ErrCrashLoop, alone)
			return DeadLetter(ReasonCrashLoop, OutcomeOf(err)), false
		}
		return Verdict{Action: MoveToSuspects, Losses: total}, false
	}
	if h.Losses+losses < suspectAfter {
		return Verdict{Action: MoveToBack, Losses: h.Losses + losses}, false
	}
	return Verdict{Action: MoveToSuspects, Losses: suspectAfter}, false
}

// Grace is the time that a task has to return after its timeout or a shutdown cancelled its context.
const Grace = time.Second
