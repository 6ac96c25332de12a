package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// call is one attempt of a task.
type call struct {
	delivery broker.Delivery
	plan     *taskPlan
	bound    boundCall
	uuid     string
	name     string
	started  time.Time
	due      time.Time // started + timeout + grace; zero without a timeout
	at       *feed     // where the slot that makes the call reads, and its replacement goes on

	// Guarded by shift.mu.
	state callState
	index int // in shift.overdue; -1 = not there
}

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
	var d *broker.Delivery // under way and not concluded
	var c *call            // its call, once there is one
	defer func() {
		if d != nil {
			// Only runtime.Goexit, in the function or in a method that decodes its arguments, comes here with a delivery under
			// way. Nothing stops a Goexit, so the work goes on in a new goroutine.
			s.goexit(at, *d, c)
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
		for delivery := range at.consumer.Deliveries() {
			d, c = &delivery, nil
			if c = s.accept(delivery, at); c != nil {
				err := s.invoke(c)
				abandoned := s.callEnded(c)
				if d = nil; abandoned {
					s.w.log.Infof("worker %q: abandoned task %q (%s) ended after %v: %s", s.w.cfg.Name, c.name, c.uuid,
						time.Since(c.started).Round(time.Millisecond), outcomeText(err))
					return
				}
				s.conclude(c, err)
			}
			d = nil
		}
	}
}

// goexit replaces a slot whose goroutine is being ended from inside the user's code.
func (s *shift) goexit(at *feed, d broker.Delivery, c *call) {
	if c != nil && s.callEnded(c) {
		return // abandoned before: its delivery is settled and its slot replaced
	}
	s.mu.Lock()
	s.slots++
	s.mu.Unlock()
	go s.slot(at, func() {
		if c == nil {
			s.settle(d, deadLetter(reasonBadArguments, ErrGoexit))
			return
		}
		s.conclude(c, ErrGoexit)
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

// accept turns a delivery into a call. What cannot be called is settled at once, and there is no call.
func (s *shift) accept(d broker.Delivery, at *feed) *call {
	if s.taking.Err() != nil {
		// Given back while the consumer is still there, it would come straight back: a hot loop of releases.
		select {
		case <-at.consumer.Done():
		case <-s.hard.Done():
		}
		s.settle(d, verdict{action: release})
		return nil
	}
	s.w.server.stats.received.Add(1)
	if limit := s.w.server.cfg.MaxBodyBytes; limit > 0 && len(d.Body) > limit {
		s.settle(d, deadLetter(reasonMalformed, fmt.Errorf("%w: body of %d bytes, the most is %d", ErrMalformed, len(d.Body), limit)))
		return nil
	}
	task, err := decodeTask(d.Body)
	if err != nil {
		s.settle(d, deadLetter(reasonMalformed, err))
		return nil
	}
	plan := s.w.tasks[task.Name]
	if plan == nil {
		s.settle(d, deadLetter(reasonUnknownTask, fmt.Errorf("%w: worker %q has no function %q", ErrUnknownTask, s.w.cfg.Name, clip(task.Name))))
		return nil
	}
	bound, err := plan.bind(task.Args)
	if err != nil {
		s.settle(d, deadLetter(reasonBadArguments, err))
		return nil
	}
	c := &call{delivery: d, plan: plan, bound: bound, uuid: task.UUID, name: task.Name, at: at, started: time.Now(), index: -1}
	if c.uuid == "" {
		c.uuid = d.ID
	}
	if plan.timeout > 0 {
		c.due = c.started.Add(plan.timeout).Add(shutdownGrace)
	}
	return c
}

// invoke calls the function and returns its error, or the panic as one.
func (s *shift) invoke(c *call) (err error) {
	s.callBegins(c)
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	ctx, cancel := s.taskContext(c)
	defer cancel()
	return c.plan.call(ctx, c.uuid, c.bound)
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
		s.overdue.add(c)
	}
}

// callEnded ends the watch and reports whether the call had been abandoned. An abandoned call that ends makes room for the
// next overdue one.
func (s *shift) callEnded(c *call) (abandoned bool) {
	s.mu.Lock()
	s.running--
	abandoned = c.state == callAbandoned
	c.state = callFinished
	s.overdue.remove(c)
	var next *call
	if abandoned {
		s.abandoned--
		next = s.abandonLate()
	}
	s.mu.Unlock()
	if next != nil {
		s.replace(next)
	}
	return abandoned
}

// replace starts the slot that takes over from that of an abandoned call, and has the dead letter written by it.
// abandonLate has counted it.
func (s *shift) replace(c *call) {
	go s.slot(c.at, func() { s.conclude(c, errAbandoned) })
}

// conclude judges how a call ended and settles its delivery.
func (s *shift) conclude(c *call, err error) {
	now := time.Now()
	v := judge(attempt{
		err:      err,
		late:     c.plan.timeout > 0 && now.Sub(c.started) >= c.plan.timeout,
		shutdown: s.tasks.Err() != nil,
		timeout:  c.plan.timeout,
	})
	s.settle(c.delivery, v)
}

// settle carries a verdict out. What cannot be settled because its connection is gone is delivered again by the broker.
func (s *shift) settle(d broker.Delivery, v verdict) {
	stats := &s.w.server.stats
	var err error
	switch v.action {
	case ack:
		if err = d.Ack(); err == nil {
			stats.succeeded.Add(1)
		}
	case release:
		if err = d.Release(); err == nil {
			stats.released.Add(1)
		}
	case toDeadLetters:
		err = s.deadLetter(d, v)
	}
	if err == nil {
		return
	}
	if errors.Is(err, broker.ErrDeliveryLost) || errors.Is(err, broker.ErrSessionLost) {
		stats.lost.Add(1)
	}
	s.w.log.Errorf("worker %q: %s of task %q (%s): %v; the broker will deliver it again", s.w.cfg.Name, v.action, clip(d.Type), clip(d.ID), err)
}

// deadLetter keeps the delivery open until its dead letter is confirmed: trying again with pauses, until the connection is
// lost or the worker's time is up, when the delivery is given back. It must never be given back at once: that is a
// requeue loop.
func (s *shift) deadLetter(d broker.Delivery, v verdict) error {
	msg := deadLetterMessage(d, v, s.w.cfg.Name, time.Now())
	pauses := newBackOff(100*time.Millisecond, 30*time.Second, 0.5)
	for failures := 0; ; failures++ {
		err := s.deadLetterOnce(d, msg)
		switch {
		case err == nil:
			s.w.server.stats.deadLettered.Add(1)
			s.w.log.Errorf("worker %q: task %q (%s) is a dead letter: %s: %s", s.w.cfg.Name, clip(d.Type), clip(d.ID), v.reason, outcomeText(v.err))
			s.stuck(failures > 0, -1, nil)
			return nil
		case errors.Is(err, broker.ErrDeliveryLost), errors.Is(err, broker.ErrSettled), errors.Is(err, broker.ErrSessionLost):
			s.stuck(failures > 0, -1, nil)
			return err
		}
		s.stuck(failures == 0, +1, err)
		s.w.log.Errorf("worker %q: dead letter of task %q (%s): %v; trying again", s.w.cfg.Name, clip(d.Type), clip(d.ID), err)
		pause := time.NewTimer(pauses.NextBackOff())
		select {
		case <-pause.C:
		case <-d.Lost():
		case <-s.tasks.Done():
			pause.Stop()
			s.stuck(true, -1, nil)
			return s.releaseUnsettled(d)
		}
		pause.Stop()
	}
}

func (s *shift) deadLetterOnce(d broker.Delivery, msg broker.Message) error {
	ctx, cancel := context.WithTimeout(s.hard, s.w.server.cfg.PublishTimeout)
	defer cancel()
	return d.DeadLetter(ctx, msg)
}

// releaseUnsettled gives back, at shutdown, what could not become a dead letter.
func (s *shift) releaseUnsettled(d broker.Delivery) error {
	err := d.Release()
	if err == nil {
		s.w.server.stats.released.Add(1)
	}
	return err
}

// stuck counts, for Health, the deliveries that cannot be settled now.
func (s *shift) stuck(counts bool, n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if counts {
		s.unsettled += n
	}
	if err != nil {
		s.err = err
	}
}
