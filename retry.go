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
	err    error  // why
}

// Reasons of dead letters, as the header x-dispatcher-reason carries them.
const (
	reasonMalformed    = "malformed"
	reasonBadArguments = "bad_arguments"
	reasonUnknownTask  = "unknown_task"
	reasonFailed       = "failed"
	reasonTimeout      = "timeout"
)

func deadLetter(reason string, err error) verdict {
	return verdict{action: toDeadLetters, reason: reason, err: err}
}

// attempt is how one call of a task's function ended.
type attempt struct {
	err      error         // what the function returned; a panic as *PanicError; nil = it did its work
	late     bool          // it returned after its timeout, or not at all
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
		return deadLetter(reasonTimeout, fmt.Errorf("%w of %v: %w", ErrTimeout, a.timeout, a.err))
	case a.shutdown:
		return verdict{action: release, err: a.err}
	default:
		return deadLetter(reasonFailed, a.err)
	}
}
