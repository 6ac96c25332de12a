package engine

import (
	"errors"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// A server runs one call of a task at a time. A delivery that arrives while a call of its task runs is held aside, in
// its own goroutine. It counts as fetched, so only some are held. Otherwise nothing else would be fetched. Further ones
// are put off and come again.

// heldDelay is the longest time to put off a task because a call of it runs here. If that call is abandoned, it is the
// exact time.
const heldDelay = 10 * time.Second

// Reasons to put off a task while a call of it runs here.
var (
	errRuns         = errors.New("another call of this task is running here")
	errStillRunning = errors.New("an abandoned call of this task is still running here")
)

// shelf holds deliveries, each on a goroutine of its own. mu guards their number.
type shelf struct {
	cfg     *Config
	phases  *phases
	settler *settler
	ledger  *ledger
	stopped <-chan struct{} // the last consumer has stopped
	offers  chan<- offer
	most    int // how many may be held, heirs not counted

	mu   sync.Mutex
	held int
}

func newShelf(
	cfg *Config, p *phases, s *settler, l *ledger, stopped <-chan struct{}, offers chan<- offer,
) *shelf {
	return &shelf{
		cfg: cfg, phases: p, settler: s, ledger: l, stopped: stopped, offers: offers, most: maxHeld(cfg.leastAhead()),
	}
}

// maxHeld returns how many deliveries, except heirs, may be held. It leaves more than half of the prefetch to other
// tasks. Raising the prefetch instead would cost RabbitMQ a subscription for each change.
func maxHeld(prefetch int) int { return (prefetch - 1) / 2 }

// put counts one more held delivery and reports true, unless most are held already.
func (h *shelf) put(always bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !always && h.held >= h.most {
		return false
	}
	h.held++
	return true
}

// remove notes that a delivery is held no more.
func (h *shelf) remove() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held--
}

func (h *shelf) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held
}

// claim makes sure that the task does not run twice at once in this server. If it runs, the delivery is held until that
// call ends. The same attempt, delivered again because its link was lost, then takes that call's verdict. Any other
// delivery runs after it: another attempt, a replay, or a task that was published twice with one uuid, since dropping
// that would lose it.
func (h *shelf) claim(c *Call, now time.Time) (verdict.Verdict, readiness) {
	c.run.key, c.run.since = taskKey{broker.Owner(c.Delivery.Queue), c.Name, c.ID}, now
	c.run.attempts, c.run.again, c.run.delivery = c.history.Attempts, c.HandedOut(), &c.Delivery
	other, heir := h.cfg.Shared.running.begin(&c.run)
	switch {
	case other == nil:
		return verdict.Verdict{}, toBeCalled
	case c.suspect(): // it has the turn: other suspects must not wait for that call
		patience := time.NewTimer(verdict.Grace)
		defer patience.Stop()
		if v, ours := h.await(c, other, patience.C); !ours {
			return v, toBeSettled
		}
		return verdict.Verdict{}, toBeCalled
	case h.put(heir || !c.at.delays):
		c.aside = true
		h.ledger.spawn(func() { h.hold(c, other) })
		return verdict.Verdict{}, isHeld
	}
	// The longer that call has run, the longer it may run still.
	delay := min(max(c.run.since.Sub(other.since), verdict.FirstUnknownDelay), heldDelay)
	return verdict.Verdict{Action: verdict.Postpone, Delay: delay, Outcome: verdict.OutcomeOf(errRuns)}, toBeSettled
}

// hold waits until other ends, and then for a slot that calls the function.
func (h *shelf) hold(c *Call, other *run) {
	v, ours := h.await(c, other, nil)
	if ours {
		c.aside, c.claimed = false, true
		select {
		case h.offers <- offer{held: c}:
			h.remove()
			return
		case <-h.phases.taking.Done():
		case <-c.Delivery.Lost():
		}
		c.aside, v = true, verdict.Verdict{Action: verdict.Release}
	}
	if v.Action == verdict.Release { // not while the consumer is still there: see accept
		select {
		case <-c.at.consumer.Done():
		case <-c.Delivery.Lost():
		case <-h.stopped:
		}
	}
	h.remove()
	h.settler.settleUncalled(c, v)
}

// take takes over a held call. It returns nil if the shift has been stopped.
func (h *shelf) take(c *Call) *Call {
	if h.phases.taking.Err() == nil {
		return c
	}
	h.settler.settleUncalled(c, verdict.Verdict{Action: verdict.Release})
	return nil
}

// await waits for other, a run of the same task, and for the runs that follow it. It returns a verdict, or reports ours
// if the task is to be called now. patience, if not nil, ends the wait.
func (h *shelf) await(c *Call, other *run, patience <-chan time.Time) (v verdict.Verdict, ours bool) {
	tasks := &h.cfg.Shared.running
	putOff := func(why error) verdict.Verdict { // a suspect: beside the others it would not run alone
		return verdict.Verdict{
			Action:  verdict.ReturnToSuspects,
			Losses:  c.history.Losses,
			Outcome: verdict.OutcomeOf(why),
		}
	}
	for ; other != nil; other, _ = tasks.begin(&c.run) {
		select {
		case <-other.decided:
		case <-other.ended:
			select {
			case <-other.decided: // in the same moment
			default: // it was not called
				continue
			}
		case <-patience:
			return putOff(errRuns), false
		case <-h.phases.taking.Done():
			return verdict.Verdict{Action: verdict.Release}, false
		case <-c.Delivery.Lost():
			return verdict.Verdict{Action: verdict.Release}, false // the failing release counts it as lost
		}
		switch v, what := tasks.inherit(&c.run, other); what {
		case inherits:
			return v, false
		case otherRuns:
			if c.suspect() {
				return putOff(errStillRunning), false
			}
			return verdict.Verdict{
				Action:  verdict.Postpone,
				Delay:   heldDelay,
				Outcome: verdict.OutcomeOf(errStillRunning),
			}, false
		}
		<-other.ended // its end follows at once
	}
	return verdict.Verdict{}, true
}
