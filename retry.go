package dispatcher

import (
	"fmt"
	"time"
)

// action is what is done with a delivery.
type action string

const (
	ack           action = "ack"
	release       action = "release"
	toDeadLetters action = "dead letter"
)

// verdict is what becomes of a delivery after an attempt, or instead of one.
type verdict struct {
	action action
	reason string // of a dead letter
	outcome
}

// Reasons of dead letters, as the header x-dispatcher-reason carries them.
const (
	reasonMalformed    = "malformed"
	reasonBadArguments = "bad_arguments"
	reasonUnknownTask  = "unknown_task"
	reasonFailed       = "failed"
	reasonTimeout      = "timeout"
)

func deadLetter(reason string, o outcome) verdict {
	return verdict{action: toDeadLetters, reason: reason, outcome: o}
}

// attempt is how one call of a task's function ended.
type attempt struct {
	outcome                // what the function returned; a panic as *PanicError; nil = it did its work
	late     bool          // it returned after its timeout, or not at all, and no shutdown had cancelled it before
	timeout  time.Duration // 0 = none
	shutdown bool          // the contexts of tasks had been cancelled because the worker stops
}

// judge is the verdict on an attempt. Whoever returns without an error has done the work, also when late: to call that a
// failure would make somebody do it again.
func judge(a attempt) verdict {
	switch {
	case a.err == nil:
		return verdict{action: ack}
	case a.late:
		return deadLetter(reasonTimeout, outcome{a.err, fmt.Sprintf("%v of %v: %s", ErrTimeout, a.timeout, a.text)})
	case a.shutdown:
		return verdict{action: release, outcome: a.outcome}
	default:
		return deadLetter(reasonFailed, a.outcome)
	}
}
