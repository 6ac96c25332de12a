package engine

import (
	"context"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/link"
)

// settleTimeout is how long a stopping worker keeps trying to write a dead letter.
const settleTimeout = 30 * time.Second

// phases are the contexts of a shift, which end one after the other when it is stopped. No lock is needed:
// contexts and the sync.Once guard themselves. Every method may be called more than once.
type phases struct {
	taking context.Context // while it lives, deliveries are taken
	// Ends settleTimeout after taking; then calls whose verdict cannot be written are given back.
	settling context.Context
	tasks    context.Context // the parent of the contexts of all calls
	hard     context.Context // when it has ended, nothing is waited for any more

	stopTaking   context.CancelFunc
	stopSettling context.CancelFunc
	stopTasks    context.CancelCauseFunc
	stopHard     context.CancelFunc

	cancel    sync.Once
	cancelled time.Time // when cancelTasks ended tasks; read it only after tasks has ended
}

func newPhases() *phases {
	p := &phases{}
	p.taking, p.stopTaking = context.WithCancel(context.Background())
	p.settling, p.stopSettling = link.WithGrace(p.taking, settleTimeout)
	p.tasks, p.stopTasks = context.WithCancelCause(context.Background())
	p.hard, p.stopHard = context.WithCancel(context.Background())
	return p
}

// cancelTasks cancels the contexts of all calls, once.
func (p *phases) cancelTasks() {
	p.cancel.Do(func() {
		p.cancelled = time.Now()
		p.stopTasks(fault.ErrShutdown)
	})
}

// end releases the contexts when nothing uses them any more.
func (p *phases) end() {
	p.stopSettling()
	p.stopTasks(nil)
	p.stopHard()
}
