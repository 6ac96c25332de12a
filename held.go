package dispatcher

import (
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

// maxHeld returns how many deliveries, except heirs, may be held. It leaves more than half of the prefetch to other
// tasks. Raising the prefetch instead would cost RabbitMQ a subscription for each change.
func (s *shift) maxHeld() int { return (s.w.cfg.Limit - 1) / 2 }

// claim makes sure that the task does not run twice at once in this server. If it runs, the delivery is held until that
// call ends. The same attempt, delivered again because its link was lost, then takes that call's verdict. Any other
// delivery runs after it: another attempt, a replay, or a task that was published twice with one uuid, since dropping
// that would lose it.
func (s *shift) claim(c *call) (verdict.Verdict, readiness) {
	c.run.key, c.run.since = taskKey{broker.Owner(c.delivery.Queue), c.name, c.uuid}, time.Now()
	c.run.attempts, c.run.again, c.run.delivery = c.history.Attempts, c.delivery.Redelivered || c.history.Losses > 0, &c.delivery
	other, heir := s.w.server.running.begin(&c.run)
	switch {
	case other == nil:
		return verdict.Verdict{}, toBeCalled
	case c.suspect(): // it has the turn: other suspects must not wait for that call
		patience := time.NewTimer(verdict.Grace)
		defer patience.Stop()
		if v, ours := s.await(c, other, patience.C); !ours {
			return v, toBeSettled
		}
		return verdict.Verdict{}, toBeCalled
	case s.mayHold(heir || !c.at.delays):
		c.aside = true
		go s.hold(c, other)
		return verdict.Verdict{}, isHeld
	}
	// The longer that call has run, the longer it may run still.
	delay := min(max(c.run.since.Sub(other.since), verdict.FirstUnknownDelay), heldDelay)
	return verdict.Verdict{Action: verdict.Postpone, Delay: delay, Outcome: verdict.OutcomeOf(errRuns)}, toBeSettled
}

// mayHold counts one more held delivery and reports true, unless maxHeld are held already.
func (s *shift) mayHold(always bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !always && s.held >= s.maxHeld() {
		return false
	}
	s.held++
	s.slots++ // its goroutine
	return true
}

func (s *shift) unhold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held--
}

// hold waits until other ends, and then for a slot that calls the function.
func (s *shift) hold(c *call, other *run) {
	defer s.slotEnded()
	v, ours := s.await(c, other, nil)
	if ours {
		c.aside, c.claimed = false, true
		select {
		case s.offers <- offer{held: c}:
			s.unhold()
			return
		case <-s.taking.Done():
		case <-c.delivery.Lost():
		}
		c.aside, v = true, verdict.Verdict{Action: verdict.Release}
	}
	if v.Action == verdict.Release { // not while the consumer is still there: see accept
		select {
		case <-c.at.consumer.Done():
		case <-c.delivery.Lost():
		case <-s.stopped:
		}
	}
	s.unhold()
	s.settleUncalled(c, v)
}

// takeHeld takes over a held call. It returns nil if the shift has been stopped.
func (s *shift) takeHeld(c *call) *call {
	if s.taking.Err() == nil {
		return c
	}
	s.settleUncalled(c, verdict.Verdict{Action: verdict.Release})
	return nil
}

// await waits for other, a run of the same task, and for the runs that follow it. It returns a verdict, or reports ours
// if the task is to be called now. patience, if not nil, ends the wait.
func (s *shift) await(c *call, other *run, patience <-chan time.Time) (v verdict.Verdict, ours bool) {
	for ; other != nil; other, _ = s.w.server.running.begin(&c.run) {
		select {
		case <-other.decided:
			v, taken, abandoned := s.w.server.running.take(&c.run, other)
			switch {
			case taken:
				return v, false
			case abandoned && c.suspect(): // beside the others it would not run alone
				return verdict.Verdict{Action: verdict.PutOff, Losses: c.history.Losses, Outcome: verdict.OutcomeOf(errStillRunning)}, false
			case abandoned:
				return verdict.Verdict{Action: verdict.Postpone, Delay: heldDelay, Outcome: verdict.OutcomeOf(errStillRunning)}, false
			}
			<-other.ended // its end follows at once
		case <-other.ended: // without a verdict: it was not called
		case <-patience:
			return verdict.Verdict{Action: verdict.PutOff, Losses: c.history.Losses, Outcome: verdict.OutcomeOf(errRuns)}, false
		case <-s.taking.Done():
			return verdict.Verdict{Action: verdict.Release}, false
		case <-c.delivery.Lost():
			return verdict.Verdict{Action: verdict.Release}, false // the failing release counts it as lost
		}
	}
	return verdict.Verdict{}, true
}
