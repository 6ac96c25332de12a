// Package engine takes deliveries, limits, runs and judges their calls, and settles them. It does not know what a
// message means: a facade tells it, through a [Handler]. A worker of a facade has one [Shift] at a time.
package engine

import (
	"cmp"
	"context"
	"hash/maphash"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// Config describes a worker. All fields are required unless they say otherwise, and none changes while a shift lives.
type Config struct {
	Name  string // of the worker
	Queue string
	Noun  string // a message, as errors and the log call it: "task"

	Limit        int // how many calls run at once
	Prefetch     int // how many deliveries the broker hands out before one is settled, at least Limit; 0 = see pace
	AckEach      bool
	MaxAbandoned int // how many calls may run on after their timeout and have their slot given to others

	UnknownMaxAge  time.Duration // how long a message is put off whose function is unknown; negative = not at all
	PublishTimeout time.Duration // bounds one try to write a copy

	// What the worker declares: first its queue with its bindings, then those of its dead letters and suspects.
	Parts    []link.Part
	Link     *link.Supervisor
	Declarer *link.Declarer
	Shared   *Shared

	Handler  Handler
	Observer Observer
	Counters *Counters
	Log      *slog.Logger // with the worker's attributes

	// Overlong returns the names of functions whose calls may take at least that long. Its only use is a warning.
	Overlong func(time.Duration) []string
	// Ended is called when the shift is over, before WorkerStopped.
	Ended func()
}

// leastAhead returns the number of deliveries that the broker may always hand out before one is settled.
func (cfg *Config) leastAhead() int { return cmp.Or(cfg.Prefetch, cfg.Limit) }

// mostAhead returns the largest number of them.
func (cfg *Config) mostAhead() int { return cmp.Or(cfg.Prefetch, max(cfg.Limit, mostPrefetch)) }

// Handler knows what messages mean. For each call its methods are called in the order below, as far as the call gets, and
// one at a time. Panicked follows Bind or Run. They are called for many calls at once.
type Handler interface {
	// NewCall returns a Call that is embedded in a struct of the facade's, to which its Payload points: this costs one
	// allocation a delivery and not two.
	NewCall() *Call
	// Recycle takes back a call that is over and that nobody knows any more. NewCall may return it again, empty. It
	// comes last, and only for some calls.
	Recycle(c *Call)
	// Identify reads the message and sets Name and ID. It runs no user code. An error makes the delivery a dead letter
	// with the reason malformed.
	Identify(c *Call) error
	// Find sets Plan. An error means that no function has this name; the delivery is put off.
	Find(c *Call) error
	// Bind converts the arguments. It may run user code, and may still run when the call is abandoned. An error makes
	// the delivery a dead letter with the reason bad_arguments; logged is its text for the log, without values.
	Bind(c *Call) (logged string, err error)
	// Run calls the function. ctx has the call's deadline if the Plan wants a context.
	Run(ctx context.Context, c *Call) error
	// Panicked returns the error of an attempt that panicked with this value.
	Panicked(value any, stack []byte) error
}

// Observer is called when something has happened, on the goroutine that does the work. Each func may be nil. It must not
// use the call's Payload: Bind or Run of an abandoned call may still be using it. It must not keep the call.
type Observer struct {
	WorkerStarted func()
	WorkerStopped func()
	Started       func(*Call)                                 // an attempt begins
	Finished      func(*Call, verdict.Verdict, time.Duration) // an attempt has its verdict, which is carried out next
	Retried       func(*Call, verdict.Verdict)                // the copy for the next attempt is confirmed
	DeadLettered  func(*Call, verdict.Verdict)                // the dead letter is confirmed
}

// Counters count what becomes of deliveries. Each delivery that was received is counted once more when it has its
// verdict.
type Counters struct {
	Received, Succeeded, Discarded, Retried, Postponed, Suspected, DeadLettered, Released, Lost, Abandoned atomic.Int64
}

// Shared is what the workers of a server have in common.
type Shared struct {
	running   running
	turn      turn
	innocents *innocents
}

// NewShared returns what the workers of one server share.
func NewShared() *Shared {
	return &Shared{running: running{seed: maphash.MakeSeed()}, turn: make(turn, 1), innocents: newInnocents()}
}
