package dispatcher

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/contain"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/logs"
	"github.com/seed-416683c9/dispatcher/internal/text"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// settleTimeout is how long a stopping worker keeps trying to write a dead letter.
const settleTimeout = 30 * time.Second

// shift is one run of a worker: from Start, through any number of consumers, until its last call has ended. It owns the
// goroutines of run, patrol and the slots.
//
// When a shift is stopped, its contexts end one after the other: taking (no more deliveries are taken), settling (half
// a minute later; tasks whose verdict cannot be written are given back), tasks (the parent of all task contexts) and
// hard (nothing is waited for any more).
type shift struct {
	w *Worker

	taking     context.Context
	stopTaking context.CancelFunc
	settling   context.Context
	stopSettle context.CancelFunc
	tasks      context.Context
	stopTasks  context.CancelCauseFunc
	hard       context.Context
	stopHard   context.CancelFunc

	offers    chan offer    // from patrol or hold to a free slot
	suspected chan struct{} // signals a new suspect; buffers one
	patrolled chan struct{} // closed when patrol has returned

	began   chan struct{} // closed when Start has succeeded or failed
	stopped chan struct{} // closed when the last consumer has stopped, or did not answer Stop
	ended   chan struct{} // closed when run has returned, or will never run
	over    chan struct{} // closed when run and all slots have returned; the worker can be started again

	mu        sync.Mutex    // guards the fields below; never held across I/O or user code
	slots     int           // goroutines of slots, including abandoned ones and those aside
	empty     chan struct{} // closed when slots is 0, which happens once: a slot ends only when the shift is stopped
	runOver   bool          // run has returned
	watched   deadlines     // calls with a timeout
	overdue   list.List     // calls past timeout and grace that keep their slot because of MaxAbandoned; oldest first
	abandoned int           // calls whose slot was given to others
	calls     int           // running calls of task functions, including abandoned ones
	stuck     int           // deliveries whose verdict cannot be written now
	held      int           // deliveries that wait for another call of their task
	fetching  bool          // a suspect is being fetched
	cancelled time.Time     // when stop cancelled tasks
	feed      *feed         // the latest; nil before the first
	fed       chan struct{} // closed when feed is replaced
	consuming bool
	err       error     // the last problem with consuming, settling or suspects
	errAt     time.Time // when err occurred
	barred    error     // why no suspect can be fetched; nil = the last fetch succeeded
}

func newShift(w *Worker) *shift {
	s := &shift{
		w:       w,
		fed:     make(chan struct{}),
		began:   make(chan struct{}),
		stopped: make(chan struct{}),
		ended:   make(chan struct{}),
		over:    make(chan struct{}),
		empty:   make(chan struct{}),

		offers:    make(chan offer),
		suspected: make(chan struct{}, 1),
		patrolled: make(chan struct{}),
	}
	s.taking, s.stopTaking = context.WithCancel(context.Background())
	s.settling, s.stopSettle = link.WithGrace(s.taking, settleTimeout)
	s.tasks, s.stopTasks = context.WithCancelCause(context.Background())
	s.hard, s.stopHard = context.WithCancel(context.Background())
	s.watched.init(s.onDue)
	return s
}

// neverBegan ends a shift whose Start failed.
func (s *shift) neverBegan() {
	s.stopTaking()
	close(s.began)
	close(s.empty)
	s.runEnded()
}

// begin starts the goroutines.
func (s *shift) begin(session broker.Session, consumer broker.Consumer) {
	s.mu.Lock()
	s.slots = s.w.cfg.Limit
	s.consuming = true
	s.mu.Unlock()
	for range s.w.cfg.Limit {
		go s.slot(nil, nil)
	}
	go s.run(session, consumer)
	go s.patrol()
	close(s.began)
	s.w.log.Info("worker takes tasks")
	s.warnOfConsumerTimeout(session.Capabilities().ConsumerTimeout)
	if hook := s.w.server.cfg.Hooks.WorkerStarted; hook != nil {
		contain.CallApart(s.w.log, hook, WorkerEvent{s.w.cfg.Name, s.w.cfg.Queue})
	}
}

// consume declares the worker's queues in session and starts consuming. Another program or an operator may have deleted
// the queues.
func (s *shift) consume(ctx context.Context, session broker.Session) (broker.Consumer, error) {
	if err := session.Declare(ctx, s.w.topology()); err != nil {
		return nil, err
	}
	return session.Consume(ctx, s.w.consuming())
}

// warnOfConsumerTimeout warns, once, of tasks that may run longer than the broker lets a consumer hold them. The broker
// then gives them to another consumer while they run. The worker fetches as many tasks as it has slots, so it holds a
// task for its timeout and its grace.
func (s *shift) warnOfConsumerTimeout(most time.Duration) {
	if most == 0 {
		return
	}
	var names []string
	for name, plan := range s.w.tasks {
		if plan.timeout > 0 && plan.timeout+verdict.Grace >= most {
			names = append(names, name)
		}
	}
	if names == nil {
		return
	}
	slices.Sort(names)
	s.w.log.Warn("tasks may run for longer than the broker's default lets a worker hold them; raise the broker's consumer timeout "+
		"(docs/rabbitmq.md, Long tasks) or split them", "tasks", text.Cut(strings.Join(names, ", "), 200), "consumer_timeout", most)
}

// run gives the slots one consumer after the other, until the shift is stopped.
func (s *shift) run(session broker.Session, consumer broker.Consumer) {
	defer s.runEnded()
	defer func() { <-s.patrolled }() // every return path has stopped taking
	pauses := link.RetryPauses()
	for consumer != nil {
		s.feedSlots(newFeed(session, consumer, s.w.cfg.Limit))

		born := time.Now()
		select {
		case <-consumer.Done():
		case <-s.taking.Done():
			s.finish(consumer)
			return
		}
		s.note(false, consumer.Err())
		if !errors.Is(consumer.Err(), broker.ErrSessionLost) { // the supervisor logs a lost connection, once for all workers
			s.w.log.Warn("consumer lost", "err", logs.Brief(consumer.Err()))
		}
		if time.Since(born) >= link.StableAfter {
			pauses.Reset()
		}
		session, consumer = s.reopen(session, pauses)
	}
	// The shift was stopped, or the server gave up, while there was no consumer. There is nothing to give back.
	s.stopTaking()
	s.awaitSlots()
}

// reopen consumes again in the current session. It returns nil when the shift is stopped or there will be no more
// sessions.
func (s *shift) reopen(dead broker.Session, pauses interface{ NextBackOff() time.Duration }) (broker.Session, broker.Consumer) {
	var problem error
	deaths, said := 0, ""
	for {
		// The supervisor already paces sessions, so pause after a dead one only if this worker ends one after the
		// other. A session's Done may come later than its consumer's.
		if dead.Err() == nil || deaths > 1 {
			if !link.Sleep(s.taking, link.PauseAfter(problem, pauses)) {
				return nil, nil
			}
		}
		var not broker.Session
		if dead.Err() != nil {
			not = dead
		}
		session, err := s.w.server.sup.Await(s.taking, not)
		if err != nil {
			return nil, nil
		}
		ctx, cancel := context.WithTimeout(s.taking, link.OpenTimeout)
		consumer, err := s.w.consumeAgain(ctx, session)
		cancel()
		if err == nil {
			s.note(true, nil)
			s.w.log.Info("worker takes tasks again")
			return session, consumer
		}
		if s.taking.Err() != nil {
			return nil, nil
		}
		s.note(false, err)
		if text := err.Error(); text != said { // a queue may be away for hours
			said = text
			s.w.log.Warn("cannot consume; trying again", "err", logs.Brief(err, fmt.Sprintf("consume queue %q: ", s.w.cfg.Queue)))
		}
		if dead, problem = session, err; errors.Is(err, broker.ErrSessionLost) {
			deaths++
		}
	}
}

// finish ends the last consumer: it gives back tasks that have not started, lets the slots end, and flushes.
func (s *shift) finish(consumer broker.Consumer) {
	s.note(false, nil)
	ctx, cancel := context.WithTimeout(s.hard, link.CloseTimeout)
	most := link.CloseTimeout
	if err := consumer.Stop(ctx); err != nil && !errors.Is(err, broker.ErrSessionLost) {
		s.w.log.Warn("the consumer did not stop", "err", logs.Brief(err))
		most = verdict.Grace // it will not answer Close either
	}
	cancel()
	close(s.stopped)
	s.awaitSlots()
	ctx, cancel = context.WithTimeout(context.Background(), most)
	defer cancel()
	if err := consumer.Close(ctx); err != nil && !errors.Is(err, broker.ErrSessionLost) {
		s.w.log.Warn("the consumer did not close", "err", logs.Brief(err))
	}
}

// awaitSlots waits until all slots have ended, or until the shift is stopped hard.
func (s *shift) awaitSlots() {
	select {
	case <-s.empty:
	case <-s.hard.Done():
	}
}

// stop implements Worker.Shutdown. Every step is idempotent, so concurrent calls work together.
func (s *shift) stop(ctx context.Context) error {
	s.stopTaking()
	select {
	case <-s.over:
		return nil
	case <-ctx.Done():
	}
	s.cancelTasks()
	timer := time.NewTimer(verdict.Grace)
	defer timer.Stop()
	select {
	case <-s.over:
		return nil
	case <-timer.C:
	}
	s.stopSettle()
	s.stopHard()
	return s.leaveBehind()
}

// cancelTasks cancels the contexts of all tasks, once.
func (s *shift) cancelTasks() {
	s.mu.Lock()
	if s.cancelled.IsZero() {
		s.cancelled = time.Now()
	}
	s.mu.Unlock()
	s.stopTasks(ErrShutdown)
}

func (s *shift) cancelledAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cancelled
}

// leaveBehind waits for goroutines that end by themselves after the hard stop, and reports calls that do not end.
func (s *shift) leaveBehind() error {
	// Start's own I/O ends with taking, and run ends within closeTimeout. Only a broker that ignores its contexts takes
	// longer.
	late := time.NewTimer(link.CloseTimeout + verdict.Grace)
	defer late.Stop()
	for _, ended := range []chan struct{}{s.began, s.ended} {
		select {
		case <-ended:
		case <-late.C:
			return fmt.Errorf("worker %q: the broker does not return from ending the consumer", s.w.cfg.Name)
		}
	}
	s.mu.Lock()
	running, abandoned := s.calls-s.abandoned, s.abandoned
	s.mu.Unlock()
	switch {
	case abandoned > 0:
		return fmt.Errorf("worker %q: %w: %d, and %d abandoned ones", s.w.cfg.Name, ErrTasksRunning, running, abandoned)
	case running > 0:
		return fmt.Errorf("worker %q: %w: %d", s.w.cfg.Name, ErrTasksRunning, running)
	}
	select { // all calls have ended, and their slots end soon
	case <-s.over:
	case <-late.C:
	}
	return nil
}

// runEnded notes that run has returned, or will never run.
func (s *shift) runEnded() {
	s.mu.Lock()
	s.runOver = true
	over := s.slots == 0
	s.mu.Unlock()
	close(s.ended)
	if over {
		s.endShift()
	}
}

// slotEnded notes that the goroutine of a slot returns. The last one ends the shift if run has returned.
func (s *shift) slotEnded() {
	s.mu.Lock()
	s.slots--
	last, over := s.slots == 0, s.slots == 0 && s.runOver
	s.mu.Unlock()
	if last {
		close(s.empty)
	}
	if over {
		s.endShift()
	}
}

// endShift releases the contexts and frees the worker. It runs once, after everything else has ended.
func (s *shift) endShift() {
	s.mu.Lock()
	s.watched.timer.Stop()
	s.mu.Unlock()
	s.stopSettle()
	s.stopTasks(nil)
	s.stopHard()
	s.w.server.refused.Forget(s.w.cfg.Name)
	s.w.free(s)
	if hook := s.w.server.cfg.Hooks.WorkerStopped; hook != nil && s.feed != nil {
		contain.CallApart(s.w.log, hook, WorkerEvent{s.w.cfg.Name, s.w.cfg.Queue})
	}
	close(s.over)
}

// note records whether the worker consumes, and the last problem.
func (s *shift) note(consuming bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.consuming = consuming
	if err != nil {
		s.failed(err)
	}
}

// failed records the last problem. The caller holds s.mu.
func (s *shift) failed(err error) { s.err, s.errAt = err, time.Now() }

// bar records why no suspect can be fetched. A nil error means that suspects can be fetched.
func (s *shift) bar(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.barred = why
	if why != nil {
		s.failed(why)
	}
}
