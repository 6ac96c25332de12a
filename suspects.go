package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/logs"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// Suspects are tasks whose worker was lost more than once while it held them. They wait in <queue>.suspects. A server
// runs one suspect at a time, so that it is known which task ended a process. When a link ends, the broker charges
// every task that it has handed out. So suspects are fetched, not pushed, and only when they run at once.

// suspectsEvery is how often a worker looks for suspects that others have put there. There are hardly ever any.
const suspectsEvery = 15 * time.Second

// offer asks a free slot to run a suspect, or a task that was held.
type offer struct {
	held   *call // nil = a suspect
	answer chan<- offerAnswer
	turn   bool // Server.suspect is held for it already
}

type offerAnswer int

const (
	noSuspect   offerAnswer = iota // there is none for this worker, or that is unknown
	oneSuspect                     // one was run, or moved on
	anotherRuns                    // another worker of this server runs one
)

// patrol offers the slots a suspect from time to time, and at once after one was found or made here.
func (s *shift) patrol() {
	defer close(s.patrolled)
	turn := false
	for {
		answer := make(chan offerAnswer, 1)
		if turn {
			turn = false
			select {
			case s.offers <- offer{answer: answer, turn: true}:
			default: // no slot is free: others must not wait for one
				<-s.w.server.suspect
				continue
			}
		} else {
			select {
			case s.offers <- offer{answer: answer}:
			case <-s.taking.Done():
				return
			}
		}
		// The slot that took the offer answers at the latest when its call ends or is abandoned.
		select {
		case a := <-answer:
			if a == oneSuspect {
				continue
			}
			if turn = a == anotherRuns && s.awaitTurn(); turn {
				continue
			}
		case <-s.taking.Done():
			return
		}
		timer := time.NewTimer(time.Duration(float64(suspectsEvery) * (0.8 + 0.4*rand.Float64())))
		select {
		case <-timer.C:
		case <-s.suspected:
		case <-s.taking.Done():
		}
		timer.Stop()
	}
}

// awaitTurn waits until no suspect runs in this server, and then lets none run. If workers only looked, and started
// over when another one was looking, many of them would block each other.
func (s *shift) awaitTurn() bool {
	select {
	case s.w.server.suspect <- struct{}{}:
		return true
	case <-s.taking.Done():
		return false
	}
}

// takeSuspect fetches a suspect if none runs in this server. It returns nil if there is none.
func (s *shift) takeSuspect(at *feed, o offer) *call {
	alone := s.w.server.suspect
	if !o.turn {
		select {
		case alone <- struct{}{}:
		default:
			o.answer <- anotherRuns
			return nil
		}
	}
	over := func(a offerAnswer) {
		<-alone
		o.answer <- a
	}
	if s.taking.Err() != nil { // patrol has offered once more than it should
		over(noSuspect)
		return nil
	}
	d := s.fetchSuspect(at)
	if d == nil {
		over(noSuspect)
		return nil
	}
	s.w.server.stats.received.Add(1)
	c := newCall(*d, at)
	if s.taking.Err() != nil { // stopped meanwhile
		s.settle(c, verdict.Verdict{Action: verdict.Release})
		over(noSuspect)
		return nil
	}
	c.over = over
	return c
}

// fetchSuspect takes one message from the queue of suspects through the feed's session. It returns nil if none arrives
// within closeTimeout. A cancelled fetch may have taken a suspect, and the broker would charge it with a loss. So the
// fetch goes on beside the slot and gives a late suspect back. No other fetch begins before it ends.
func (s *shift) fetchSuspect(at *feed) *broker.Delivery {
	if !s.mayFetch() {
		return nil
	}
	fetched, late := make(chan *broker.Delivery), make(chan struct{})
	go func() {
		defer s.slotEnded()
		d := s.getSuspect(at)
		s.fetchEnded() // before the slot may be offered the next one
		select {
		case fetched <- d:
		case <-late:
			if d != nil {
				s.w.server.stats.received.Add(1)
				s.settle(newCall(*d, at), verdict.Verdict{Action: verdict.Release})
			}
		}
	}()
	timer := time.NewTimer(link.CloseTimeout)
	defer timer.Stop()
	select {
	case d := <-fetched:
		return d
	case <-timer.C:
		s.bar(fmt.Errorf("fetch a suspect: no answer for %v", link.CloseTimeout))
		close(late)
		return nil
	}
}

// mayFetch counts the goroutine of a fetch and reports true, unless a fetch is under way or Limit verdicts cannot be
// written. The prefetch does not bound suspects.
func (s *shift) mayFetch() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetching || s.stuck >= s.w.cfg.Limit {
		return false
	}
	s.fetching = true
	s.slots++
	return true
}

func (s *shift) fetchEnded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetching = false
}

// getSuspect asks the broker for a suspect. It gives up when the session is lost, or some seconds after the shift was
// stopped.
func (s *shift) getSuspect(at *feed) *broker.Delivery {
	ctx, cancel := link.WithGrace(s.taking, link.CloseTimeout)
	defer cancel()
	defer context.AfterFunc(s.hard, cancel)()
	queue := s.w.cfg.Queue + broker.SuspectsSuffix
	ds, err := at.session.TryGet(ctx, queue, 1)
	switch {
	case err == nil:
		s.bar(nil)
		if len(ds) > 0 {
			return &ds[0]
		}
	case errors.Is(err, broker.ErrQueueGone):
		s.redeclare()
	case at.session.Err() == nil && s.taking.Err() == nil:
		s.bar(fmt.Errorf("fetch a suspect: %w", err))
		s.w.log.Warn("cannot fetch suspects; trying again", "err", logs.Brief(err, fmt.Sprintf("get from queue %q: ", queue)))
	}
	return nil
}

// suspectMade makes patrol look for a suspect at once.
func (s *shift) suspectMade() {
	select {
	case s.suspected <- struct{}{}:
	default:
	}
}
