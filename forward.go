package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
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
var errStays = errors.New("neither its queue nor that of its suspects takes it")

// forward writes the copy that the verdict asks for, and keeps the delivery open until the copy is confirmed. It tries
// again with pauses until the connection is lost, or until the worker's time is up and the delivery is given back.
// Never give it back immediately: that would loop. The call steps aside before the first pause. forward returns the
// verdict that was carried out.
//
// A full queue drains only if the task at its head does not need room at its back. So a task that was lost once and
// cannot go to the back goes to the suspects, which have their own room. If they take nothing either, the task is
// called at once.
func (s *shift) forward(c *call, v verdict.Verdict) (verdict.Verdict, error) {
	msg := c.forwarded(v, s.w.cfg.Name, time.Now())
	pauses, log := link.RetryPauses(), func() *slog.Logger { return s.about(c, v.Made.Number) }
	slim, bare, moved, waited := false, false, false, time.Duration(0)
	for {
		err := s.forwardOnce(c, v, msg)
		switch {
		case err == nil, errors.Is(err, broker.ErrDeliveryLost), errors.Is(err, broker.ErrSettled), errors.Is(err, broker.ErrSessionLost):
			return v, err
		case errors.Is(err, errors.ErrUnsupported) && v.Action != verdict.ToDeadLetters:
			log().Warn("the broker has no delays; the task becomes a dead letter", "verdict", string(v.Action))
			v = v.WithoutDelays()
			msg = c.forwarded(v, s.w.cfg.Name, time.Now())
			continue
		case errors.Is(err, broker.ErrHeadersTooLarge) && !slim:
			slim = true // our own may have made them too large
			slimDown(msg.Headers)
			continue
		// The headers came so large that there is no room for ours. Waiting would hold the delivery for ever, and Limit
		// such messages would stop the worker. A dead letter needs less room than a delayed message.
		case errors.Is(err, broker.ErrHeadersTooLarge) && v.Action != verdict.ToDeadLetters:
			made, stack := v.Made, v.Stack
			v = verdict.DeadLetter(ReasonMalformed, verdict.OutcomeOf(fmt.Errorf("%w: %w; %s: %s", ErrMalformed, broker.ErrHeadersTooLarge, v.Action, v.Text)))
			v.Made, v.Stack = made, stack
			msg, slim = c.forwarded(v, s.w.cfg.Name, time.Now()), false
			continue
		case errors.Is(err, broker.ErrHeadersTooLarge) && !bare:
			bare = true
			bareHeaders(msg.Headers)
			continue
		}
		switch {
		case v.Action == verdict.ToBack:
			log().Warn("the back of the queue does not take the task; it goes to the suspects", "err", logs.Brief(err))
			v.Action, moved = verdict.ToSuspects, true
			continue
		case moved:
			log().Warn("the suspects do not take the task; it is called now, and its loss is not counted", "err", logs.Brief(err))
			return v, errStays
		case v.Action == verdict.RetryLater && c.at.delays && waited >= roomDelay:
			v.Delay = max(v.Delay, roomDelay)
		}
		pause := pauses.NextBackOff()
		log().Warn("verdict not written; trying again", "verdict", string(v.Action), "retry_in", logs.Rounded(pause), "err", logs.Brief(err))
		if waited == 0 {
			s.stepAside(c)
			s.stuckBy(+1, nil)
			defer s.stuckBy(-1, nil)
		}
		s.stuckBy(0, fmt.Errorf("%s of task %q (%q) not written: %w", v.Action, text.Excerpt(c.name), text.Excerpt(c.uuid), err))
		if errors.Is(err, broker.ErrUnroutable) {
			s.redeclare() // the queue was deleted
		}
		if err := s.awaitRetry(c.delivery, pause); err != nil {
			return v, err
		}
		waited += pause
		if s.settling.Err() != nil || s.tasks.Err() != nil {
			v.Action = verdict.Release
			return v, s.giveBack(c)
		}
	}
}

// forwardOnce tries once to write the copy. It ends at the latest when settling ends.
func (s *shift) forwardOnce(c *call, v verdict.Verdict, msg broker.Message) error {
	ctx, cancel := context.WithTimeout(s.settling, min(s.w.server.cfg.PublishTimeout, forwardTimeout))
	defer cancel()
	switch v.Action {
	case verdict.ToDeadLetters:
		return c.delivery.DeadLetter(ctx, msg)
	case verdict.ToSuspects, verdict.PutOff:
		return c.delivery.Suspect(ctx, msg)
	default:
		return c.delivery.Retry(ctx, msg, v.Delay)
	}
}

// awaitRetry waits for the pause, or until there is no time left to retry. It returns an error if the delivery is lost.
func (s *shift) awaitRetry(d broker.Delivery, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.settling.Done():
	case <-s.tasks.Done():
	case <-d.Lost():
		return broker.ErrDeliveryLost
	}
	return nil
}

// redeclare declares the worker's queues again if there is a connection.
func (s *shift) redeclare() {
	session, err := s.w.server.sup.Session()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.settling, link.OpenTimeout)
	defer cancel()
	for _, p := range s.w.parts() { // a refused one must not prevent the others
		if err := session.Declare(ctx, p.Topology); err != nil {
			s.w.server.log.Warn("not declared", "worker", p.Owner, p.Kind, p.Name, "err", p.Brief(err))
		}
	}
}

// stuckBy adds n to the number of deliveries that cannot be settled now, for Health. It records why, if not nil.
func (s *shift) stuckBy(n int, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck += n
	if why != nil {
		s.failed(why)
	}
}
