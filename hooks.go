package dispatcher

import (
	"time"
)

// Hooks are called when something has happened: for metrics, logs and tests. Every field may be nil, and a nil field
// costs nothing. New fields may be added at any time: write literals with names.
//
// Events carry no arguments, which may be secret. Put what hooks need into Task.Headers. In events, Task.Headers
// includes the library's own headers, x-dispatcher-…, and must not be changed.
//
// Finished is called before the verdict is carried out, Retried and DeadLettered after the broker has confirmed it. So
// the next attempt may begin before Retried is called. A process that dies at the wrong moment has done something
// without calling its hook.
//
// Hooks run on the goroutine that does the work, many at once, so they must be quick and safe for concurrent use. A
// task or a publish waits for its hook, and a hook that never returns holds a slot for ever. Hooks may publish, with
// two exceptions: the server does not reconnect while Disconnected runs, and a task that Published publishes calls
// Published again.
//
// A hook that panics is logged and harms nothing else. A hook that ends its goroutine (runtime.Goexit, FailNow of a
// test) harms nothing else either, with two exceptions: in Started it fails the attempt, and in Published it ends the
// goroutine that publishes.
type Hooks struct {
	Published func(PublishEvent) // a publish has its outcome; also for tasks that leave the outbox
	// A task in the outbox was refused by the broker and is kept among its dead entries.
	OutboxRefused func(PublishEvent)

	Started func(StartEvent) // an attempt begins
	// An attempt has ended and its verdict is made, but not yet carried out; also for abandoned calls.
	Finished     func(FinishEvent)
	Retried      func(RetryEvent)      // a copy for the next attempt is confirmed
	DeadLettered func(DeadLetterEvent) // a dead letter is confirmed

	// The connection is lost, or was given up; also for a server that starts without one.
	Disconnected func(ConnectionEvent)
	// The connection stands again; also the first one of a server that started without one.
	Reconnected func(ConnectionEvent)

	WorkerStarted func(WorkerEvent) // a worker takes tasks
	WorkerStopped func(WorkerEvent) // the last call of a worker has ended after Close or Shutdown
}

// PublishEvent describes one task that was published.
type PublishEvent struct {
	UUID, Name, RoutingKey string
	Err                    error // the outcome, as Publish returns it; nil = confirmed
	// From the call of Publish to the outcome; in a batch, to its end; in PublishAll, from taking the task to yielding
	// it; for an entry of the outbox, from its publish to leaving the outbox.
	Duration time.Duration
}

// StartEvent describes an attempt that begins.
type StartEvent struct{ Task TaskInfo }

// FinishEvent describes an attempt that has ended.
type FinishEvent struct {
	Task     TaskInfo
	Verdict  Verdict
	Err      error // the function's error; a panic as *PanicError
	Duration time.Duration
}

// Verdict is the decision about a task after an attempt.
type Verdict string

const (
	VerdictDone       Verdict = "done"        // acknowledged
	VerdictDiscard    Verdict = "discard"     // failed, and acknowledged because the function said Discard
	VerdictRetry      Verdict = "retry"       // another attempt follows, later
	VerdictDeadLetter Verdict = "dead_letter" // kept for a person
	VerdictRelease    Verdict = "release"     // given back because the worker stops
)

// RetryEvent describes a task that will be tried again.
type RetryEvent struct {
	Task  TaskInfo // of the attempt that failed
	Delay time.Duration
	Err   error
}

// DeadLetterEvent describes a task that became a dead letter, including one that was never run. Task.Name and UUID are
// empty if its body does not contain them.
type DeadLetterEvent struct {
	Task   TaskInfo
	Reason string // as DeadLetter.Reason
	Err    error
}

// ConnectionEvent describes the connection to the broker.
type ConnectionEvent struct {
	State State
	Err   error // why it was lost or given up; nil when it stands
}

// WorkerEvent describes a worker.
type WorkerEvent struct{ Name, Queue string }

// Tee returns Hooks that call all of hooks, in their order. If one panics, the others still receive the event.
func Tee(hooks ...Hooks) Hooks {
	return Hooks{
		Published:     tee(hooks, func(h *Hooks) func(PublishEvent) { return h.Published }),
		OutboxRefused: tee(hooks, func(h *Hooks) func(PublishEvent) { return h.OutboxRefused }),
		Started:       tee(hooks, func(h *Hooks) func(StartEvent) { return h.Started }),
		Finished:      tee(hooks, func(h *Hooks) func(FinishEvent) { return h.Finished }),
		Retried:       tee(hooks, func(h *Hooks) func(RetryEvent) { return h.Retried }),
		DeadLettered:  tee(hooks, func(h *Hooks) func(DeadLetterEvent) { return h.DeadLettered }),
		Disconnected:  tee(hooks, func(h *Hooks) func(ConnectionEvent) { return h.Disconnected }),
		Reconnected:   tee(hooks, func(h *Hooks) func(ConnectionEvent) { return h.Reconnected }),
		WorkerStarted: tee(hooks, func(h *Hooks) func(WorkerEvent) { return h.WorkerStarted }),
		WorkerStopped: tee(hooks, func(h *Hooks) func(WorkerEvent) { return h.WorkerStopped }),
	}
}

// tee returns one field of Tee, or nil if no hook has it.
func tee[E any](hooks []Hooks, field func(*Hooks) func(E)) func(E) {
	var all []func(E)
	for i := range hooks {
		if f := field(&hooks[i]); f != nil {
			all = append(all, f)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return func(e E) { callAll(all, e) }
}

// callAll calls all functions, even if one panics. The panic goes on afterwards.
func callAll[E any](all []func(E), e E) {
	for i, f := range all {
		func() {
			defer func() {
				if v := recover(); v != nil {
					callAll(all[i+1:], e)
					panic(v)
				}
			}()
			f(e)
		}()
	}
}
