package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/text"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// Shift is one run of a worker: from Start, through any number of consumers, until its last call has ended. It owns the
// goroutines, and has no lock: each of its parts guards itself. Its methods may be called by many goroutines at once,
// but Start only once.
type Shift struct {
	cfg *Config

	phases  *phases  // what has ended already
	ledger  *ledger  // goroutines and calls
	state   *state   // for Health
	feeder  *feeder  // consumers
	settler *settler // verdicts
	shelf   *shelf   // deliveries that wait for another call of their task
	patrol  *patrol  // suspects

	offers chan offer    // from patrol or shelf to a free slot
	began  chan struct{} // closed when Start has succeeded or failed
	ended  chan struct{} // closed when run has returned, or will never run
	over   chan struct{} // closed when everything has returned
}

// New returns a shift that does nothing before Start.
func New(cfg *Config) *Shift {
	s := &Shift{
		cfg:    cfg,
		phases: newPhases(),
		state:  &state{},
		offers: make(chan offer),
		began:  make(chan struct{}),
		ended:  make(chan struct{}),
		over:   make(chan struct{}),
	}
	s.ledger = newLedger(cfg.MaxAbandoned, &cfg.Counters.Abandoned, s.replace, s.end)
	s.feeder = newFeeder(cfg, s.phases, s.state, s.ledger)
	s.settler = &settler{
		cfg: cfg, phases: s.phases, state: s.state, giving: make(chan struct{}, givers), stepAside: s.stepAside,
	}
	s.feeder.giveBack = s.settler.giveBackAll
	s.shelf = newShelf(cfg, s.phases, s.settler, s.ledger, s.feeder.stopped, s.offers)
	s.patrol = newPatrol(cfg, s.phases, s.settler, s.ledger, s.state, s.offers)
	s.settler.suspectMade = s.patrol.suspectMade
	s.feeder.suspects = s.patrol.inSlots
	return s
}

// Start declares the worker's queues and begins to consume. It takes at most OpenTimeout. After an error the shift is
// over. The error Is ErrShutdown if Stop was called meanwhile, an error of Link.Session or Link.WaitForQueues, or one
// of the broker.
func (s *Shift) Start() error {
	session, err := s.cfg.Link.Session()
	if err != nil {
		s.neverBegan()
		return err
	}
	ctx, cancel := context.WithTimeout(s.phases.taking, link.OpenTimeout)
	defer cancel()
	var consumer broker.Consumer
	err = s.cfg.Link.WaitForQueues(ctx, session, func(now broker.Session) (err error) {
		session = now
		consumer, err = s.feeder.open(ctx, session)
		return err
	})
	if err != nil {
		if s.phases.taking.Err() != nil {
			err = fault.ErrShutdown
		}
		s.neverBegan()
		return err
	}
	s.begin(session, consumer)
	return nil
}

// neverBegan ends a shift whose Start failed.
func (s *Shift) neverBegan() {
	s.phases.stopTaking()
	close(s.began)
	close(s.ledger.empty)
	s.runEnded()
}

// begin starts the goroutines.
func (s *Shift) begin(session broker.Session, consumer broker.Consumer) {
	s.ledger.enter(s.cfg.Limit)
	s.state.note(true, nil)
	s.state.prefetches(s.cfg.leastAhead())
	for range s.cfg.Limit {
		go s.ledger.run(func() { s.slot(nil, nil) })
	}
	go s.run(session, consumer)
	go s.patrol.run()
	close(s.began)
	s.cfg.Log.Info("worker receives " + s.cfg.Noun + "s")
	s.warnOfConsumerTimeout(session.Capabilities().ConsumerTimeout)
	if f := s.cfg.Observer.WorkerStarted; f != nil {
		f()
	}
}

// warnOfConsumerTimeout warns, once, of calls that may take longer than the broker lets a consumer hold a delivery. The
// broker then gives it to another consumer while it runs. A worker that prefetches more than it has slots holds a
// delivery while others run before it.
func (s *Shift) warnOfConsumerTimeout(most time.Duration) {
	if most == 0 {
		return
	}
	alone := most - longestWait
	if s.cfg.Prefetch > 0 {
		turns := (s.cfg.Prefetch + s.cfg.Limit - 1) / s.cfg.Limit
		alone = most / time.Duration(turns)
	}
	names := s.cfg.Overlong(alone - verdict.Grace)
	if len(names) == 0 {
		return
	}
	slices.Sort(names)
	s.cfg.Log.Warn(s.cfg.Noun+"s may run longer than the broker's default consumer timeout; "+
		"raise that timeout (docs/rabbitmq.md, Long tasks) or split them",
		s.cfg.Noun+"s", text.Cut(strings.Join(names, ", "), 200), "consumer_timeout", most, "prefetch", s.cfg.mostAhead())
}

// run feeds the slots until the shift is stopped.
func (s *Shift) run(session broker.Session, consumer broker.Consumer) {
	defer s.runEnded()
	defer func() { <-s.patrol.ended }() // the feeder has stopped taking
	s.feeder.run(session, consumer)
}

// Stopping reports whether the shift takes no more deliveries.
func (s *Shift) Stopping() bool { return s.phases.taking.Err() != nil }

// State returns the shift's state.
func (s *Shift) State() State {
	now := s.state.now()
	now.Running, now.Abandoned = s.ledger.counts()
	now.Held = s.shelf.count()
	return now
}

// Stop takes no more deliveries, gives back those that have not started, and waits for running calls until ctx ends.
// Then it cancels their contexts with ErrShutdown as their cause and waits for one more second. Calls that still run
// are left behind: the error Is ErrTasksRunning. Every step may be repeated, so concurrent calls of Stop work together.
func (s *Shift) Stop(ctx context.Context) error {
	s.phases.stopTaking()
	select {
	case <-s.over:
		return nil
	case <-ctx.Done():
	}
	s.phases.cancelTasks()
	timer := time.NewTimer(verdict.Grace)
	defer timer.Stop()
	select {
	case <-s.over:
		return nil
	case <-timer.C:
	}
	s.phases.stopSettling()
	s.phases.stopHard()
	return s.leaveBehind()
}

// leaveBehind waits for goroutines that end by themselves after the hard stop, and reports calls that do not end.
func (s *Shift) leaveBehind() error {
	// Start's own I/O ends with taking, and run ends within CloseTimeout. Only a broker that ignores its contexts takes
	// longer.
	late := time.NewTimer(link.CloseTimeout + verdict.Grace)
	defer late.Stop()
	for _, ended := range []chan struct{}{s.began, s.ended} {
		select {
		case <-ended:
		case <-late.C:
			return fmt.Errorf("worker %q: the broker has not ended the consumer in time", s.cfg.Name)
		}
	}
	calls, abandoned := s.ledger.counts()
	switch running := calls - abandoned; {
	case abandoned > 0:
		return fmt.Errorf("worker %q: %w: %d, and %d abandoned", s.cfg.Name, fault.ErrTasksRunning, running, abandoned)
	case running > 0:
		return fmt.Errorf("worker %q: %w: %d", s.cfg.Name, fault.ErrTasksRunning, running)
	}
	select { // all calls have ended, and their slots end soon
	case <-s.over:
	case <-late.C:
	}
	return nil
}

// runEnded notes that run has returned, or will never run.
func (s *Shift) runEnded() {
	over := s.ledger.runEnded()
	close(s.ended)
	if over {
		s.end()
	}
}

// end releases what the shift holds and frees its worker. It runs once, after everything else has ended.
func (s *Shift) end() {
	s.ledger.stopTimer()
	s.phases.end()
	s.cfg.Ended()
	if f := s.cfg.Observer.WorkerStopped; f != nil && s.feeder.latest() != nil {
		f()
	}
	close(s.over)
}
