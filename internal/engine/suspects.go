package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/logs"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// Suspects are tasks whose worker was lost more than once while it held them. They wait in <queue>.suspects. A server
// runs one suspect at a time: see turn. When a link ends, the broker charges every task that it has handed out. So
// suspects are fetched, not pushed, and only when they run at once.

// suspectsEvery is how often a worker looks for suspects that others have put there. There are hardly ever any.
const suspectsEvery = 15 * time.Second

// offer asks a free slot to run a suspect, or a task that was held.
type offer struct {
	held   *Call // nil = a suspect
	answer chan<- offerAnswer
	turn   bool // the turn is acquired already
}

type offerAnswer int

const (
	noSuspect   offerAnswer = iota // there is none for this worker, or that is unknown
	oneSuspect                     // one was run, or moved on
	anotherRuns                    // another worker of this server runs one
)

// patrol looks for suspects from time to time, and fetches them for slots. It owns the goroutine of run; slots call take.
type patrol struct {
	cfg     *Config
	phases  *phases
	settler *settler
	ledger  *ledger
	state   *state
	offers  chan<- offer

	found chan struct{} // signals a new suspect; buffers one
	ended chan struct{} // closed when run has returned

	running atomic.Int32 // suspects in slots

	mu       sync.Mutex // guards fetching
	fetching bool       // a suspect is being fetched
}

func newPatrol(cfg *Config, p *phases, s *settler, l *ledger, st *state, offers chan<- offer) *patrol {
	return &patrol{
		cfg: cfg, phases: p, settler: s, ledger: l, state: st, offers: offers,
		found: make(chan struct{}, 1), ended: make(chan struct{}),
	}
}

// run offers the slots a suspect from time to time, and at once after one was found or made here.
func (p *patrol) run() {
	defer close(p.ended)
	taking := p.phases.taking.Done()
	acquired := false
	for {
		answer := make(chan offerAnswer, 1)
		if acquired {
			acquired = false
			select {
			case p.offers <- offer{answer: answer, turn: true}:
			default: // no slot is free: others must not wait for one
				p.cfg.Shared.turn.release()
				continue
			}
		} else {
			select {
			case p.offers <- offer{answer: answer}:
			case <-taking:
				return
			}
		}
		// The slot that took the offer answers at the latest when its call ends or is abandoned.
		select {
		case a := <-answer:
			if a == oneSuspect {
				continue
			}
			// If workers only looked, and started over when another one was looking, many would block each other.
			if acquired = a == anotherRuns && p.cfg.Shared.turn.acquire(taking); acquired {
				continue
			}
		case <-taking:
			return
		}
		timer := time.NewTimer(time.Duration(float64(suspectsEvery) * (0.8 + 0.4*rand.Float64())))
		select {
		case <-timer.C:
		case <-p.found:
		case <-taking:
		}
		timer.Stop()
	}
}

// suspectMade makes run look for a suspect at once.
func (p *patrol) suspectMade() {
	select {
	case p.found <- struct{}{}:
	default:
	}
}

// mayFetch begins a fetch and reports true, unless one is under way.
func (p *patrol) mayFetch() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fetching {
		return false
	}
	p.fetching = true
	return true
}

func (p *patrol) fetchEnded() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fetching = false
}

// take fetches a suspect for a slot if none runs in this server. It returns nil if there is none.
func (p *patrol) take(at *feed, o offer) *Call {
	turn := p.cfg.Shared.turn
	if !o.turn && !turn.tryAcquire() {
		o.answer <- anotherRuns
		return nil
	}
	over := func(a offerAnswer) {
		turn.release()
		o.answer <- a
	}
	if p.phases.taking.Err() != nil { // patrol has offered once more than it should
		over(noSuspect)
		return nil
	}
	d := p.fetch(at)
	if d == nil {
		over(noSuspect)
		return nil
	}
	p.cfg.Counters.Received.Add(1)
	c := p.cfg.newCall(*d, at)
	if p.phases.taking.Err() != nil { // stopped meanwhile
		p.settler.settle(c, verdict.Verdict{Action: verdict.Release})
		over(noSuspect)
		return nil
	}
	p.running.Add(1)
	c.over = func(a offerAnswer) {
		p.running.Add(-1)
		over(a)
	}
	return c
}

// inSlots returns how many suspects occupy a slot.
func (p *patrol) inSlots() int { return int(p.running.Load()) }

// fetch takes one message from the queue of suspects through the feed's session. It returns nil if none arrives
// within CloseTimeout, and at once if Limit verdicts cannot be written, since the prefetch does not bound suspects. A
// cancelled fetch may have taken a suspect, and the broker would charge it with a loss. So the fetch goes on beside the
// slot and gives a late suspect back. No other fetch begins before it ends.
func (p *patrol) fetch(at *feed) *broker.Delivery {
	if p.state.stuck() >= p.cfg.Limit || !p.mayFetch() {
		return nil
	}
	fetched, late := make(chan *broker.Delivery), make(chan struct{})
	p.ledger.spawn(func() {
		d := p.get(at)
		p.fetchEnded() // before the slot may be offered the next one
		select {
		case fetched <- d:
		case <-late:
			if d != nil {
				p.cfg.Counters.Received.Add(1)
				p.settler.settle(p.cfg.newCall(*d, at), verdict.Verdict{Action: verdict.Release})
			}
		}
	})
	timer := time.NewTimer(link.CloseTimeout)
	defer timer.Stop()
	select {
	case d := <-fetched:
		return d
	case <-timer.C:
		p.state.bar(fmt.Errorf("fetch a suspect: no answer for %v", link.CloseTimeout))
		close(late)
		return nil
	}
}

// get asks the broker for a suspect. It gives up when the session is lost, or some seconds after the shift was
// stopped.
func (p *patrol) get(at *feed) *broker.Delivery {
	ctx, cancel := link.WithGrace(p.phases.taking, link.CloseTimeout)
	defer cancel()
	defer context.AfterFunc(p.phases.hard, cancel)()
	queue := p.cfg.Queue + broker.SuspectsSuffix
	ds, err := at.session.TryGet(ctx, queue, 1)
	switch {
	case err == nil:
		p.state.bar(nil)
		if len(ds) > 0 {
			return &ds[0]
		}
	case errors.Is(err, broker.ErrQueueGone):
		p.settler.redeclare()
	case at.session.Err() == nil && p.phases.taking.Err() == nil:
		p.state.bar(fmt.Errorf("fetch a suspect: %w", err))
		p.cfg.Log.Warn("cannot fetch suspects; trying again",
			"err", logs.Brief(err, fmt.Sprintf("get from queue %q: ", queue)))
	}
	return nil
}
