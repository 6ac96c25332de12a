package engine

import (
	"container/list"
	"strings"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// Call is one delivery on its way through a slot and, if its function can be called, one attempt. The exported fields
// are for the facade.
type Call struct {
	Delivery broker.Delivery
	Name     string // of the function; the message's type until Identify
	ID       string // of the message, until Identify finds a better one; "" = none
	Plan     *Plan  // nil = not to be called
	Payload  any    // the facade's own

	history record.History
	losses  int   // since the history was written
	at      *feed // the source of the delivery; for a suspect, the feed whose session fetched it
	run     run
	started time.Time
	due     time.Time         // started + timeout + grace; zero without a timeout
	over    func(offerAnswer) // lets the next suspect run; nil unless this is a suspect
	stage   atomic.Int32      // callStage
	aside   bool              // it no longer holds a slot; its goroutine ends with it
	claimed bool              // it was held, and is to be called now

	// Guarded by ledger.mu.
	state   callState
	index   int           // in ledger.watched; -1 = not there
	overdue *list.Element // in ledger.overdue; nil = not there
}

// Plan says how a function is called.
type Plan struct {
	Timeout      time.Duration   // of one attempt; 0 = none
	Retry        *verdict.Policy // nil = one attempt
	WantsContext bool            // Run uses its ctx
}

// newCall prepares a delivery for a slot.
func (cfg *Config) newCall(d broker.Delivery, at *feed) *Call {
	c := cfg.Handler.NewCall()
	c.Delivery, c.history, c.losses, c.at = d, record.Read(d.Headers), d.Losses, at
	c.Name, c.ID, c.index = d.Type, d.ID, -1
	if !at.exact && d.Redelivered && !cfg.Shared.innocents.take(&d) && (c.suspect() || at.believes()) {
		c.losses = 1
	}
	return c
}

// Number returns the number of the attempt that this call is or would be, from 1.
func (c *Call) Number() int { return c.history.Attempts + 1 }

// HandedOut reports whether the message was delivered before, to this worker or another.
func (c *Call) HandedOut() bool { return c.Delivery.Redelivered || c.history.Losses > 0 }

// RoutingKey returns the key that the message was published with.
func (c *Call) RoutingKey() string {
	if c.history.RoutingKey != "" {
		return c.history.RoutingKey
	}
	return c.Delivery.RoutingKey
}

// suspect reports whether the call is suspected of ending its worker.
func (c *Call) suspect() bool { return strings.HasSuffix(c.Delivery.Queue, broker.SuspectsSuffix) }

// end lets the next suspect run if c is a suspect. Only the first answer counts.
func (c *Call) end(a offerAnswer) {
	if over := c.over; over != nil {
		c.over = nil
		over(a)
	}
}

// firstBegan returns when the first attempt began.
func (c *Call) firstBegan() time.Time {
	if c.history.Attempts > 0 {
		if log := record.Log(c.Delivery.Headers); len(log) > 0 && !log[0].At.IsZero() && log[0].At.Before(c.started) {
			return log[0].At
		}
	}
	return c.started
}

// callState is the ledger's view of a call.
type callState int

const (
	callRunning   callState = iota
	callAbandoned           // overdue: its delivery is a dead letter and its slot was given to others
	callFinished
)

// callStage is the progress of an attempt. The slot and the timer agree on it, so that no function is called after its
// dead letter was written.
type callStage = int32

const (
	callBinding callStage = iota // its arguments are being decoded, perhaps by methods of their types
	callBegun                    // it is an attempt
	callUnbound                  // abandoned while its arguments were being decoded
)
