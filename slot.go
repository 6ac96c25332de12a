package dispatcher

import (
	"container/list"
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// call is one delivery on its way through a slot and, if its task can be called, one attempt.
type call struct {
	delivery broker.Delivery
	history  history
	losses   int    // since the history was written
	at       *feed  // where its delivery came from, or, of a suspect, whose session fetched it
	name     string // of the task; what the message says until the body is decoded
	uuid     string
	plan     *taskPlan // nil = not to be called
	bound    boundCall
	run      run
	started  time.Time
	due      time.Time         // started + timeout + grace; zero without a timeout
	over     func(offerAnswer) // of a suspect: lets the next one run; otherwise nil

	// Guarded by shift.mu.
	state   callState
	index   int           // in shift.watched; -1 = not there
	overdue *list.Element // in shift.overdue; nil = not there
}

func newCall(d broker.Delivery, at *feed) *call {
	c := &call{delivery: d, history: readHistory(d.Headers), losses: d.Losses, at: at, name: d.Type, uuid: d.ID, index: -1}
	if !at.exact && d.Redelivered && (c.suspect() || at.believes()) {
		c.losses = 1
	}
	return c
}

// suspect reports whether the task is one that may end its worker.
func (c *call) suspect() bool { return strings.HasSuffix(c.delivery.Queue, broker.SuspectsSuffix) }

// outcome is how an attempt ended. Text and wish are read while the call is still watched, since they come from the user's code.
type outcome struct {
	err  error
	text string
	wish wish
}

func outcomeOf(err error) outcome { return outcome{err, errorText(err), wishOf(err)} }

type callState int

const (
	callRunning   callState = iota
	callAbandoned           // overdue: its delivery is a dead letter and its slot was given to others
	callFinished
)

// slot is the goroutine that runs tasks, one after the other: WorkerConfig.Limit of them read from the same consumer. The
// function is called on this goroutine. When a call is abandoned, another slot takes over, and this one ends with the call.
//
// first, if not nil, is what the slot this one takes over from has left to do.
func (s *shift) slot(first func()) {
	var c *call // under way in user code
	defer func() {
		if c != nil {
			// Only runtime.Goexit, in the function or in a method of its arguments or its error, comes here with a call under
			// way. Nothing stops a Goexit, so the work goes on in a new goroutine.
			s.goexit(c)
		}
		s.slotEnded()
	}()
	if first != nil {
		first()
	}
	for at := s.nextFeed(nil); at != nil; at = s.nextFeed(at) {
		for {
			var more bool
			if c, more = s.next(at); !more {
				break
			}
			if c == nil {
				continue
			}
			v := s.prepare(c)
			if c.plan == nil {
				done := c
				c = nil
				s.settleUncalled(done, v)
				continue
			}
			o := s.invoke(c)
			done, abandoned := c, s.callEnded(c)
			if c = nil; abandoned {
				s.w.server.running.end(&done.run)
				s.w.log.Infof("worker %q: abandoned task %q (%q) ended after %v: %s", s.w.cfg.Name, excerpt(done.name), excerpt(done.uuid),
					time.Since(done.started).Round(time.Millisecond), oneLine(o.text))
				return
			}
			s.conclude(done, o, false)
		}
	}
}

// next waits for the next delivery of a feed, or a suspect; nil = there was none after all. more is false when the consumer is over.
func (s *shift) next(at *feed) (c *call, more bool) {
	select {
	case d, ok := <-at.consumer.Deliveries():
		if !ok {
			return nil, false
		}
		if !s.accept(&d, at) {
			return nil, true
		}
		if !d.Redelivered {
			at.streak.Store(0)
		}
		return newCall(d, at), true
	case o := <-s.offers:
		return s.takeSuspect(at, o), true
	}
}

// goexit replaces a slot whose goroutine is being ended from inside the user's code.
func (s *shift) goexit(c *call) {
	if c.plan != nil && s.callEnded(c) {
		s.w.server.running.end(&c.run)
		return // abandoned before: its delivery is settled and its slot replaced
	}
	s.mu.Lock()
	s.slots++
	s.mu.Unlock()
	go s.slot(func() {
		if c.plan == nil {
			s.settleUncalled(c, deadLetter(ReasonBadArguments, outcomeOf(ErrGoexit)))
			return
		}
		s.conclude(c, outcomeOf(ErrGoexit), false)
	})
}

// accept reports whether a delivery is to be worked on.
func (s *shift) accept(d *broker.Delivery, at *feed) bool {
	select {
	case <-d.Lost():
		s.w.server.stats.lost.Add(1) // it is, or will be, with somebody else
		return false
	default:
	}
	if s.taking.Err() == nil {
		s.w.server.stats.received.Add(1)
		return true
	}
	// Given back while the consumer is still there, it would come straight back: a hot loop of releases. If the consumer
	// does not end, the delivery is left to Consumer.Close.
	select {
	case <-at.consumer.Done():
		s.settle(newCall(*d, at), verdict{action: release})
	case <-s.hard.Done():
	}
	return false
}

// prepare decodes the body, finds the function and binds the arguments. What is not to be called has no plan and gets its
// verdict here.
func (s *shift) prepare(c *call) verdict {
	d := &c.delivery
	if limit := s.w.server.cfg.MaxBodyBytes; limit > 0 && len(d.Body) > limit {
		return deadLetter(ReasonMalformed, outcomeOf(fmt.Errorf("%w: body of %d bytes, the most is %d", ErrMalformed, len(d.Body), limit)))
	}
	task, err := decodeTask(d.Body)
	if err != nil {
		return deadLetter(ReasonMalformed, outcomeOf(err))
	}
	c.name = task.Name
	if task.UUID != "" {
		c.uuid = task.UUID
	}
	// First of all: what runs here has not ended its worker, and has not expired either.
	if v, ours := s.claim(c); !ours {
		return v
	}
	if v, run := judgeLosses(c.history, c.losses, c.suspect()); !run {
		return v
	}
	now := time.Now()
	if at := c.history.expires; !at.IsZero() && !now.Before(at) {
		return deadLetter(ReasonExpired, outcomeOf(fmt.Errorf("%w at %s", ErrExpired, writeInstant(at))))
	}
	plan := s.w.tasks[task.Name]
	if plan == nil {
		return judgeUnknown(c.history, c.suspect(), now, s.w.cfg.UnknownTaskMaxAge,
			outcomeOf(fmt.Errorf("%w: worker %q has no function %q", ErrUnknownTask, s.w.cfg.Name, excerpt(task.Name))))
	}
	if c.bound, err = plan.bind(task.Args); err != nil {
		return deadLetter(ReasonBadArguments, outcomeOf(err))
	}
	c.plan, c.started = plan, time.Now()
	if plan.timeout > 0 {
		c.due = c.started.Add(plan.timeout).Add(grace)
	}
	return verdict{}
}

// heldDelay is how long a task is put off that may not run because an abandoned call of it still does.
const heldDelay = 10 * time.Second

// claim makes sure that the task does not run twice at once in this server. If it runs, the delivery is held until that call ends.
// The same attempt, delivered again since its link was lost, then takes that call's verdict. Anything else runs after it: another
// attempt, a replay, and also a task that was published twice with one uuid, since to drop that would be to lose it.
func (s *shift) claim(c *call) (v verdict, ours bool) {
	c.run.key = taskKey{broker.Owner(c.delivery.Queue), c.name, c.uuid}
	c.run.attempts, c.run.again, c.run.delivery = c.history.attempts, c.delivery.Redelivered || c.history.losses > 0, &c.delivery
	for {
		other := s.w.server.running.begin(&c.run)
		if other == nil {
			return verdict{}, true
		}
		select {
		case <-other.decided:
			v, taken, abandoned := s.w.server.running.take(&c.run, other)
			switch {
			case taken:
				return v, false
			case abandoned && c.suspect(): // beside the others it would not run alone
				return verdict{action: putOff, losses: c.history.losses, outcome: outcomeOf(errStillRunning)}, false
			case abandoned:
				return verdict{action: postpone, delay: heldDelay, outcome: outcomeOf(errStillRunning)}, false
			}
			select { // it follows at once
			case <-other.ended: // and then this one is next
			case <-s.hard.Done():
				return verdict{action: release}, false
			}
		case <-other.ended: // without a verdict: it was not called
		case <-s.taking.Done():
			return verdict{action: release}, false
		case <-c.delivery.Lost():
			return verdict{action: release}, false // the attempt to do so counts it
		}
	}
}

// invoke calls the function and returns how it ended; a panic is an error with its stack.
func (s *shift) invoke(c *call) (o outcome) {
	s.callBegins(c)
	if hook := s.w.server.cfg.Hooks.Started; hook != nil {
		fire(s.w.log, hook, StartEvent{*c.info(s.w.cfg.Name)})
	}
	defer func() {
		if v := recover(); v != nil {
			o = outcomeOf(&PanicError{Value: v, Stack: debug.Stack()})
		}
	}()
	ctx, cancel := s.taskContext(c)
	defer cancel()
	if len(c.plan.middleware) > 0 {
		next := func(ctx context.Context) error {
			return c.plan.call(ctx, c.uuid, boundCall{slices.Clone(c.bound.in)}) // middleware may call it several times, also at once
		}
		return outcomeOf(wrap(c.plan.middleware, next)(ctx))
	}
	return outcomeOf(c.plan.call(ctx, c.uuid, c.bound))
}

// taskContext is made only for functions that take one, or middleware.
func (s *shift) taskContext(c *call) (context.Context, context.CancelFunc) {
	if !c.plan.takesContext && len(c.plan.middleware) == 0 {
		return s.tasks, func() {}
	}
	ctx := context.WithValue(s.tasks, taskInfoKey{}, c.info(s.w.cfg.Name))
	if c.plan.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithDeadlineCause(ctx, c.started.Add(c.plan.timeout), ErrTimeout)
}

// callBegins counts the call and, if it has a timeout, puts it under watch.
func (s *shift) callBegins(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if !c.due.IsZero() {
		s.watched.add(c)
	}
}

// callEnded ends the watch and reports whether the call had been abandoned. An abandoned call that ends makes room for the
// next overdue one.
func (s *shift) callEnded(c *call) (abandoned bool) {
	s.mu.Lock()
	s.calls--
	abandoned = c.state == callAbandoned
	c.state = callFinished
	s.watched.remove(c)
	if c.overdue != nil {
		s.overdue.Remove(c.overdue)
	}
	var next *call
	if abandoned {
		s.abandoned--
		next = s.abandonOverdue()
	}
	s.mu.Unlock()
	if next != nil {
		s.replace(next)
	}
	return abandoned
}

// replace starts the slot that takes over from that of an abandoned call, and has the dead letter written by it.
// abandonOverdue has counted it.
func (s *shift) replace(c *call) {
	go s.slot(func() { s.conclude(c, outcomeOf(errAbandoned), true) })
}

// conclude judges how a call ended and settles its delivery. abandoned: it has not ended.
func (s *shift) conclude(c *call, o outcome, abandoned bool) {
	now := time.Now()
	a := attempt{
		outcome: o, timeout: c.plan.timeout, shutdown: s.tasks.Err() != nil, abandoned: abandoned,
		number: c.history.attempts + 1, first: c.firstBegan(), expires: c.history.expires, now: now,
	}
	if a.timeout > 0 {
		deadline := c.started.Add(a.timeout)
		a.late = !now.Before(deadline)
		if a.shutdown && s.cancelledAt().Before(deadline) {
			a.late = false // the shutdown came first and is what ended it
		}
	}
	v := judge(a, c.plan.retry)
	if v.action == retryLater || v.action == toDeadLetters {
		v.made = Attempt{Number: a.number, At: c.started, Duration: now.Sub(c.started), Worker: s.w.cfg.Name, Error: v.text}
	}
	s.w.server.running.decide(&c.run, v, abandoned)
	if !abandoned {
		s.w.server.running.end(&c.run)
	}
	if hook := s.w.server.cfg.Hooks.Finished; hook != nil {
		fire(s.w.log, hook, FinishEvent{*c.info(s.w.cfg.Name), v.action.verdict(), o.err, now.Sub(c.started)})
	}
	c.end(oneSuspect)
	if s.settle(c, v) {
		s.w.server.running.settled(&c.run)
	}
}

// settleUncalled settles what is not to be called. The task counts as under way until that is done: a copy that came back sooner and ended this
// process would leave the original unsettled, and there would be two.
func (s *shift) settleUncalled(c *call, v verdict) {
	s.settle(c, v)
	s.w.server.running.end(&c.run)
	if v.action == putOff { // it would be found again at once
		c.end(noSuspect)
	} else {
		c.end(oneSuspect)
	}
}

// end lets the next suspect run, if it was one.
func (c *call) end(a offerAnswer) {
	if c.over != nil {
		c.over(a)
	}
}

// firstBegan is when the first attempt of the task began.
func (c *call) firstBegan() time.Time {
	if c.history.attempts > 0 {
		if log := attemptLog(c.delivery.Headers); len(log) > 0 && !log[0].At.IsZero() && log[0].At.Before(c.started) {
			return log[0].At
		}
	}
	return c.started
}
