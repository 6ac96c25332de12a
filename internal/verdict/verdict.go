package verdict

import (
	"time"

	"github.com/seed-416683c9/dispatcher/internal/record"
)

// Action is what a worker does with a delivery.
type Action string

const (
	Ack              Action = "ack"
	Discard          Action = "discard"
	Release          Action = "release"
	RetryLater       Action = "retry"
	Postpone         Action = "postponement"           // like a retry, but no attempt was made
	ReturnToSuspects Action = "return to the suspects" // a postponement of a suspect
	MoveToBack       Action = "move to the back of the queue"
	MoveToSuspects   Action = "move to the suspects"
	ToDeadLetters    Action = "dead letter"
)

// Verdict is the decision on a delivery, after an attempt or instead of one.
type Verdict struct {
	Action  Action
	Reason  string         // of a dead letter
	Delay   time.Duration  // of a retry or postponement
	Losses  int            // the count in the copy's header, of MoveToBack, MoveToSuspects and ReturnToSuspects
	Unknown bool           // of Postpone and ReturnToSuspects: no function has the task's name
	Made    record.Attempt // added to the log of a copy; Number 0 = no attempt was made
	Outcome
}

// WithoutDelays returns the verdict for a broker that has no delays.
func (v Verdict) WithoutDelays() Verdict {
	v.Action, v.Reason = ToDeadLetters, ReasonFailed
	if v.Unknown {
		v.Reason = ReasonUnknownTask
	}
	return v
}

// Reasons why a task is a dead letter. The root package has them too, and documents them.
const (
	ReasonFailed       = "failed"
	ReasonPermanent    = "permanent"
	ReasonTimeout      = "timeout"
	ReasonExpired      = "expired"
	ReasonUnknownTask  = "unknown_task"
	ReasonCrashLoop    = "crash_loop"
	ReasonBadArguments = "bad_arguments"
	ReasonMalformed    = "malformed"
)

// DeadLetter returns the verdict that gives up a task.
func DeadLetter(reason string, o Outcome) Verdict {
	return Verdict{Action: ToDeadLetters, Reason: reason, Outcome: o}
}
