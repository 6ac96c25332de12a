package dispatcher

import (
	"container/list"
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// call is one delivery on its way through a slot and, if its task can be called, one attempt.
type call struct {
	delivery broker.Delivery
	at       *feed  // where its slot reads, and a replacement goes on
	name     string // of the task; what the message says until the body is decoded
	uuid     string
	plan     *taskPlan
	bound    boundCall
	started  time.Time
	due      time.Time // started + timeout + grace; zero without a timeout

	// Guarded by shift.mu.
	state   callState
	index   int           // in shift.watched; -1 = not there
	overdue *list.Element // in shift.overdue; nil = not there
}

// outcome is how an attempt ended. The text is made while the call is still watched, since it comes from the user's code.
type outcome struct {
	err  error
	text string
}

func outcomeOf(err error) outcome { return outcome{err, errorText(err)} }

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
func (s *shift) slot(at *feed, first func()) {
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
	for ; at != nil; at = s.nextFeed(at) {
		if at.consumer == nil {
			continue
		}
		for d := range at.consumer.Deliveries() {
			if !s.accept(&d, at) {
				continue
			}
			c = &call{delivery: d, at: at, name: d.Type, uuid: d.ID, index: -1}
			v := s.prepare(c)
			if c.plan == nil {
				done := c
				c = nil
				s.settle(done, v)
				continue
			}
			o := s.invoke(c)
			done, abandoned := c, s.callEnded(c)
			if c = nil; abandoned {
				s.w.log.Infof("worker %q: abandoned task %q (%q) ended after %v: %s", s.w.cfg.Name, done.name, done.uuid,
					time.Since(done.started).Round(time.Millisecond), oneLine(o.text))
				return
			}
			s.conclude(done, o)
		}
	}
}

// goexit replaces a slot whose goroutine is being ended from inside the user's code.
func (s *shift) goexit(c *call) {
	if c.plan != nil && s.callEnded(c) {
		return // abandoned before: its delivery is settled and its slot replaced
	}
	s.mu.Lock()
	s.slots++
	s.mu.Unlock()
	go s.slot(c.at, func() {
		if c.plan == nil {
			s.settle(c, deadLetter(reasonBadArguments, outcomeOf(ErrGoexit)))
			return
		}
		s.conclude(c, outcomeOf(ErrGoexit))
	})
}

// nextFeed waits for the feed after at; nil when the shift takes nothing any more.
func (s *shift) nextFeed(at *feed) *feed {
	select {
	case <-at.replaced:
		return at.next
	case <-s.taking.Done():
		return nil
	}
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
		s.settle(&call{delivery: *d, name: d.Type, uuid: d.ID}, verdict{action: release})
	case <-s.hard.Done():
	}
	return false
}

// prepare decodes the body, finds the function and binds the arguments. What cannot be called has no plan and gets its
// verdict here.
func (s *shift) prepare(c *call) verdict {
	d := &c.delivery
	if limit := s.w.server.cfg.MaxBodyBytes; limit > 0 && len(d.Body) > limit {
		return deadLetter(reasonMalformed, outcomeOf(fmt.Errorf("%w: body of %d bytes, the most is %d", ErrMalformed, len(d.Body), limit)))
	}
	task, err := decodeTask(d.Body)
	if err != nil {
		return deadLetter(reasonMalformed, outcomeOf(err))
	}
	c.name = task.Name
	if task.UUID != "" {
		c.uuid = task.UUID
	}
	plan := s.w.tasks[task.Name]
	if plan == nil {
		return deadLetter(reasonUnknownTask, outcomeOf(fmt.Errorf("%w: worker %q has no function %q", ErrUnknownTask, s.w.cfg.Name, excerpt(task.Name))))
	}
	if c.bound, err = plan.bind(task.Args); err != nil {
		return deadLetter(reasonBadArguments, outcomeOf(err))
	}
	c.plan, c.started = plan, time.Now()
	if plan.timeout > 0 {
		c.due = c.started.Add(plan.timeout).Add(grace)
	}
	return verdict{}
}

// invoke calls the function and returns how it ended; a panic is an error with its stack.
func (s *shift) invoke(c *call) (o outcome) {
	s.callBegins(c)
	defer func() {
		if v := recover(); v != nil {
			o = outcomeOf(&PanicError{Value: v, Stack: debug.Stack()})
		}
	}()
	ctx, cancel := s.taskContext(c)
	defer cancel()
	return outcomeOf(c.plan.call(ctx, c.uuid, c.bound))
}

// taskContext is made only for functions that take one.
func (s *shift) taskContext(c *call) (context.Context, context.CancelFunc) {
	if !c.plan.takesContext {
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
	s.running++
	if !c.due.IsZero() {
		s.watched.add(c)
	}
}

// callEnded ends the watch and reports whether the call had been abandoned. An abandoned call that ends makes room for the
// next overdue one.
func (s *shift) callEnded(c *call) (abandoned bool) {
	s.mu.Lock()
	s.running--
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
	go s.slot(c.at, func() { s.conclude(c, outcomeOf(errAbandoned)) })
}

// conclude judges how a call ended and settles its delivery.
func (s *shift) conclude(c *call, o outcome) {
	a := attempt{outcome: o, timeout: c.plan.timeout, shutdown: s.tasks.Err() != nil}
	if a.timeout > 0 {
		deadline := c.started.Add(a.timeout)
		a.late = !time.Now().Before(deadline)
		if a.shutdown && s.cancelledAt().Before(deadline) {
			a.late = false // the shutdown came first and is what ended it
		}
	}
	s.settle(c, judge(a))
}
