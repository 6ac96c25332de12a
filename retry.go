package dispatcher

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/record"
)

// RetryPolicy says whether and when a task whose attempt failed is tried again. It is set for a task, a worker or the whole
// server; the nearest one counts, as a whole. Without any, a task has one attempt.
//
// The pause after attempt n is InitialInterval × Multiplier^(n-1), at most MaxInterval, then changed at random by Jitter. Attempts that ended
// with [RetryAfter] do not count in this n: whoever waits for a rate limit has not failed that often. What a policy
// needs to go on travels with the task, so it outlives workers. A task that has used up its attempts becomes a dead letter.
type RetryPolicy struct {
	// MaxAttempts is how often a task is tried in all, the first time included. 0: 5. Negative: as often as MaxAge allows.
	MaxAttempts int
	// InitialInterval is the pause after the first attempt. 0: 1 s. Negative, or above a year: an error.
	InitialInterval time.Duration
	// MaxInterval bounds the pauses. 0: 1 h, or InitialInterval if that is longer. Shorter than InitialInterval: an error.
	MaxInterval time.Duration
	// Multiplier makes each pause longer than the one before. 0: 2. 1: all pauses are the same. Otherwise from 1 to 1000.
	Multiplier float64
	// Jitter is the share, up to 1, by which a pause is made longer or shorter at random, so that tasks that failed together do not
	// come back together. 0: 0.2. Negative: none.
	Jitter float64
	// MaxAge: no attempt begins later than this after the first one began. 0: no such limit. Negative: an error.
	MaxAge time.Duration
}

// Defaults of a RetryPolicy.
const (
	defaultMaxAttempts     = 5
	defaultInitialInterval = time.Second
	defaultMaxInterval     = time.Hour
	defaultMultiplier      = 2
	defaultJitter          = 0.2
)

// maxMultiplier is far beyond use, and keeps a slip of the pen from making every second pause the longest.
const maxMultiplier = 1000

// withDefaults is nil for nil.
func (p *RetryPolicy) withDefaults() *RetryPolicy {
	if p == nil {
		return nil
	}
	out := *p
	if out.MaxAttempts == 0 {
		out.MaxAttempts = defaultMaxAttempts
	}
	if out.InitialInterval == 0 {
		out.InitialInterval = defaultInitialInterval
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
	out.MaxAge = min(out.MaxAge, maxDuration)
	return &out
}

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
	no(p.InitialInterval > broker.MaxDelay, "InitialInterval is %v, the most is %v", p.InitialInterval, broker.MaxDelay)
	no(p.MaxInterval < 0, "MaxInterval is negative")
	no(p.MaxInterval > broker.MaxDelay, "MaxInterval is %v, the most is %v", p.MaxInterval, broker.MaxDelay)
	first := p.InitialInterval
	if first == 0 {
		first = defaultInitialInterval
	}
	no(p.MaxInterval > 0 && p.MaxInterval < first, "MaxInterval is %v, shorter than the first interval, %v", p.MaxInterval, first)
	no(p.Multiplier != 0 && !(p.Multiplier >= 1 && p.Multiplier <= maxMultiplier), "Multiplier is %v, not in 1 to %d", p.Multiplier, maxMultiplier)
	no(p.Jitter > 1 || math.IsNaN(p.Jitter), "Jitter is %v, the most is 1", p.Jitter)
	no(p.MaxAge < 0, "MaxAge is negative")
	return bad.err()
}

// interval is the pause after attempt n, from 1.
func (p *RetryPolicy) interval(n int) time.Duration {
	grown := float64(p.InitialInterval) * math.Pow(p.Multiplier, float64(n-1))
	base := p.MaxInterval
	if grown < float64(base) { // false for +Inf
		base = time.Duration(grown)
	}
	return min(newBackOff(base, base, p.Jitter).NextBackOff(), broker.MaxDelay)
}

// action is what is done with a delivery.
type action string

const (
	ack           action = "ack"
	discard       action = "discard"
	release       action = "release"
	retryLater    action = "retry"
	postpone      action = "postponement"           // like a retry, but no attempt was made
	putOff        action = "return to the suspects" // as a postponement, of a suspect
	toBack        action = "move to the back of the queue"
	toSuspects    action = "move to the suspects"
	toDeadLetters action = "dead letter"
)

// verdict is what becomes of a delivery after an attempt, or instead of one.
type verdict struct {
	action action
	reason string         // of a dead letter
	delay  time.Duration  // of a retry or postponement
	losses int            // what the copy's header says, of toBack, toSuspects and putOff
	missed bool           // of postpone and putOff: no function has the task's name
	made   record.Attempt // what the log of a copy gets; Number 0 = no attempt was made
	outcome
}

// verdict is what the hooks are told.
func (a action) verdict() Verdict {
	switch a {
	case ack:
		return VerdictDone
	case discard:
		return VerdictDiscard
	case retryLater:
		return VerdictRetry
	case release:
		return VerdictRelease
	}
	return VerdictDeadLetter
}

// withoutDelays is what becomes of a task that should come later on a broker that has no delays.
func (v verdict) withoutDelays() verdict {
	v.action, v.reason = toDeadLetters, ReasonFailed
	if v.missed {
		v.reason = ReasonUnknownTask
	}
	return v
}

func deadLetter(reason string, o outcome) verdict {
	return verdict{action: toDeadLetters, reason: reason, outcome: o}
}

// attempt is how one call of a task's function ended.
type attempt struct {
	outcome             // what the function returned; a panic as *PanicError; nil = it did its work
	late      bool      // it returned after its timeout, or not at all, and no shutdown had cancelled it before
	abandoned bool      // it still runs
	shutdown  bool      // the contexts of tasks had been cancelled because the worker stops
	number    int       // of this attempt, from 1
	asked     int       // earlier ones that ended with RetryAfter
	first     time.Time // when the first attempt began
	expires   time.Time // zero = never
	now       time.Time

	timeout time.Duration // 0 = none
}

// judge is the verdict on an attempt. Whoever returns without an error has done the work, also when late: to call that a
// failure would make somebody do it again.
func judge(a attempt, p *RetryPolicy) verdict {
	reason, o := ReasonFailed, a.outcome
	if a.late {
		reason, o.text = ReasonTimeout, timeoutText(a)
	}
	switch {
	case a.err == nil:
		return verdict{action: ack, outcome: o}
	case a.abandoned: // it must not run again while it still runs
		return deadLetter(reason, o)
	case a.shutdown && !a.late:
		return verdict{action: release, outcome: o}
	case a.wish.kind == wishPermanent:
		return deadLetter(ReasonPermanent, o)
	case a.wish.kind == wishDiscard:
		return verdict{action: discard, outcome: o}
	case p == nil && a.wish.kind != wishRetryAfter:
		return deadLetter(reason, o)
	case p != nil && p.MaxAttempts > 0 && a.number >= p.MaxAttempts:
		return deadLetter(reason, o)
	}
	var delay time.Duration
	if a.wish.kind == wishRetryAfter {
		delay = a.wish.after
	} else {
		delay = p.interval(a.number - a.asked)
	}
	due := a.now.Add(delay)
	if p != nil && p.MaxAge > 0 && due.Sub(a.first) > p.MaxAge {
		return deadLetter(reason, o)
	}
	if !a.expires.IsZero() && !due.Before(a.expires) {
		o.text = "would have expired before its next attempt: " + o.text
		return deadLetter(ReasonExpired, o)
	}
	return verdict{action: retryLater, delay: delay, outcome: o}
}

// timeoutText is the text of an attempt that was late, which says so once: most functions return the error of their context.
func timeoutText(a attempt) string {
	text := fmt.Sprintf("%v of %v", ErrTimeout, a.timeout)
	if a.abandoned {
		return fmt.Sprintf("%s: still running %v later; abandoned", text, grace)
	}
	rest := ": " + a.text
	for _, same := range []error{ErrTimeout, context.DeadlineExceeded} {
		rest = strings.TrimSuffix(rest, ": "+same.Error())
	}
	return text + rest
}

// unknownDelays: the pauses of a task that no worker knows yet.
const (
	firstUnknownDelay = 100 * time.Millisecond
	maxUnknownDelay   = 30 * time.Second
)

// judgeUnknown is the verdict on a task that this worker does not know. In a rolling deployment another one does, or will: it is
// put off, and kept for a person once maxAge has passed since it was first missed. Negative: at once.
//
// A suspect goes to the end of its line, uncharged. In the queue of all others a worker that knows it would run it beside them, and if it
// ends that one too, it would begin anew as a suspect, for ever.
func judgeUnknown(h record.History, suspect bool, now time.Time, maxAge time.Duration, o outcome) verdict {
	if maxAge < 0 || now.Sub(h.MissedSince(now)) >= maxAge {
		return deadLetter(ReasonUnknownTask, o)
	}
	if suspect {
		return verdict{action: putOff, missed: true, losses: h.Losses, outcome: o}
	}
	delay := maxUnknownDelay
	if h.Misses < 16 { // beyond, the shift could overflow
		delay = min(firstUnknownDelay<<h.Misses, maxUnknownDelay)
	}
	return verdict{action: postpone, missed: true, delay: delay, outcome: o}
}

// maxSuspectLosses is how many times a task may be lost while it runs alone, until it is taken for one that ends its worker.
const maxSuspectLosses = 3

// suspectAfter is how many losses make a task a suspect.
const suspectAfter = 2

// judgeLosses is the verdict on a delivery that was lost before; run = none, go on. losses is what the broker knows.
func judgeLosses(h record.History, losses int, suspect bool) (v verdict, run bool) {
	if losses <= 0 {
		return verdict{}, true
	}
	if suspect {
		total := max(h.Losses, suspectAfter) + losses
		if alone := total - suspectAfter; alone >= maxSuspectLosses {
			return deadLetter(ReasonCrashLoop, outcomeOf(fmt.Errorf("%w: %d times while it ran alone", ErrCrashLoop, alone))), false
		}
		return verdict{action: toSuspects, losses: total}, false
	}
	if h.Losses+losses < suspectAfter {
		return verdict{action: toBack, losses: h.Losses + losses}, false
	}
	return verdict{action: toSuspects, losses: suspectAfter}, false
}
