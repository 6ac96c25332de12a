package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/logs"
	"github.com/seed-416683c9/dispatcher/internal/text"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// forwardTimeout bounds one try to write a copy, as PublishTimeout does. A slot waits for the first try.
const forwardTimeout = 30 * time.Second

// roomDelay is how long a retry without a delay is tried before it goes through the delays, and the delay it then gets.
// A delayed message needs no room in the queue now. This is the last resort: if the queue refuses the message when it
// is due, the message arrives minutes later.
const roomDelay = time.Second

// errStays means that a task that was lost once cannot be moved, so it is called at once.
var errStays = errors.New("neither its queue nor that of its suspects accepts it")

// forwarding is a verdict on its way to the broker, as a copy of the message. One goroutine uses it.
type forwarding struct {
	s   *settler
	c   *Call
	v   verdict.Verdict // it changes if the broker does not take the copy as it is
	msg broker.Message

	slim, bare bool          // headers that msg does without
	moved      bool          // v was MoveToBack, and the back of the queue did not take it
	waited     time.Duration // pauses between the tries, in all
}

// forward writes the copy that the verdict asks for, and keeps the delivery open until the copy is confirmed. It tries
// again with pauses until the connection is lost, or until the worker's time is up and the delivery is given back.
// Never give it back immediately: that would loop. The call steps aside before the first pause. forward returns the
// verdict that was carried out.
func (s *settler) forward(c *Call, v verdict.Verdict) (verdict.Verdict, error) {
	f := forwarding{s: s, c: c}
	f.become(v)
	pauses := link.RetryPauses()
	for {
		err := f.write()
		switch {
		case err == nil,
			errors.Is(err, broker.ErrDeliveryLost),
			errors.Is(err, broker.ErrSettled),
			errors.Is(err, broker.ErrSessionLost):
			return f.v, err
		case f.change(err):
			continue
		case f.moved:
			f.log().Warn("cannot move the "+s.cfg.Noun+" to the suspects; it runs now, and its loss is not counted",
				"err", logs.Brief(err))
			return f.v, errStays
		}
		pause := pauses.NextBackOff()
		why := f.stuck(pause, err)
		if f.waited == 0 {
			s.stepAside(c)
			s.state.stuckBy(+1, why)
			defer s.state.stuckBy(-1, nil)
		} else {
			s.state.stuckBy(0, why)
		}
		if errors.Is(err, broker.ErrUnroutable) {
			s.redeclare() // the queue was deleted
		}
		if err := f.pause(pause); err != nil {
			return f.v, err
		}
		if s.phases.settling.Err() != nil || s.phases.tasks.Err() != nil {
			f.v.Action = verdict.Release
			return f.v, s.giveBack(c)
		}
	}
}

// become makes the copy for a verdict.
func (f *forwarding) become(v verdict.Verdict) {
	f.v, f.msg = v, f.c.messageFor(v, f.s.cfg.Name, time.Now())
}

// log returns the logger for the call. Most copies are written without a line.
func (f *forwarding) log() *slog.Logger { return f.s.cfg.about(f.c, f.v.Made.Number) }

// write tries once to write the copy. It ends at the latest when settling ends.
func (f *forwarding) write() error {
	ctx, cancel := context.WithTimeout(f.s.phases.settling, min(f.s.cfg.PublishTimeout, forwardTimeout))
	defer cancel()
	switch f.v.Action {
	case verdict.ToDeadLetters:
		return f.c.Delivery.DeadLetter(ctx, f.msg)
	case verdict.MoveToSuspects, verdict.ReturnToSuspects:
		return f.c.Delivery.Suspect(ctx, f.msg)
	default:
		return f.c.Delivery.Retry(ctx, f.msg, f.v.Delay)
	}
}

// change looks for another copy or place that the broker may take after err. It reports whether there is one to be
// tried at once.
//
// A full queue drains only if the task at its head does not need room at its back. So a task that was lost once and
// cannot go to the back goes to the suspects, which have their own room. If they take nothing either, the task is
// called at once.
func (f *forwarding) change(err error) bool {
	switch {
	case errors.Is(err, errors.ErrUnsupported) && f.v.Action != verdict.ToDeadLetters:
		f.log().Warn("the broker does not support delays; the "+f.s.cfg.Noun+" becomes a dead letter",
			"verdict", string(f.v.Action))
		f.become(f.v.WithoutDelays())
	case errors.Is(err, broker.ErrHeadersTooLarge) && f.lighten():
	case f.v.Action == verdict.MoveToBack:
		f.log().Warn("cannot move the "+f.s.cfg.Noun+" to the back of the queue; moving it to the suspects",
			"err", logs.Brief(err))
		f.v.Action, f.moved = verdict.MoveToSuspects, true
	default:
		return false
	}
	return true
}

// lighten takes the next step down the ladder of what a copy can do without, and reports whether there was one: most of
// our own headers; the next attempt, since a dead letter needs less room than a delayed message; all headers of the
// publisher's. The headers came so large that there is no room for ours. Waiting would hold the delivery for ever, and
// Limit such messages would stop the worker.
func (f *forwarding) lighten() bool {
	switch {
	case !f.slim:
		f.slim = true
		slimDown(f.msg.Headers)
	case f.v.Action != verdict.ToDeadLetters:
		why := fmt.Errorf("%w: %w; %s: %s", fault.ErrMalformed, broker.ErrHeadersTooLarge, f.v.Action, f.v.Text)
		dead := verdict.DeadLetter(verdict.ReasonMalformed, verdict.OutcomeOf(why))
		dead.Made, dead.Stack = f.v.Made, f.v.Stack
		f.become(dead)
		f.slim = false
	case !f.bare:
		f.bare = true
		bareHeaders(f.msg.Headers)
	default:
		return false
	}
	return true
}

// stuck logs that the copy was not written, and returns why, for Health.
func (f *forwarding) stuck(pause time.Duration, err error) error {
	if f.v.Action == verdict.RetryLater && f.c.at.delays && f.waited >= roomDelay {
		f.v.Delay = max(f.v.Delay, roomDelay)
	}
	f.log().Warn("cannot write the verdict; trying again",
		"verdict", string(f.v.Action), "retry_in", logs.Rounded(pause), "err", logs.Brief(err))
	return fmt.Errorf("write verdict %q of %s %q (%q): %w",
		f.v.Action, f.s.cfg.Noun, text.Excerpt(f.c.Name), text.Excerpt(f.c.ID), err)
}

// pause waits before the next try, or until there is no time left for one. It returns an error if the delivery is lost.
func (f *forwarding) pause(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-f.s.phases.settling.Done():
	case <-f.s.phases.tasks.Done():
	case <-f.c.Delivery.Lost():
		return broker.ErrDeliveryLost
	}
	f.waited += d
	return nil
}
