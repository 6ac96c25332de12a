package link

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/logs"
)

// outage is the time without a session, from the first try to connect.
type outage struct {
	pauses pacing
	first  bool          // Start waits for the outcome
	tries  int           // failed tries
	pause  time.Duration // pause before the next try
}

// connect tries until there is a prepared session, the retries are used up or ctx ends. If it returns nil, nil, Start
// goes on without a session.
func (s *Supervisor) connect(ctx context.Context, o *outage) (broker.Session, error) {
	for {
		session, opened, err := s.try(ctx, o.first)
		if err == nil {
			o.first, o.tries = false, 0
			return session, nil
		}
		offline := o.first && s.cfg.Offline
		// When starting offline, a deadline only bounds how long Start waits. A canceled Start needs no server.
		if ctx.Err() != nil && !(offline && errors.Is(ctx.Err(), context.DeadlineExceeded)) {
			return nil, fmt.Errorf("connect: %w: last error: %w", ctx.Err(), err)
		}
		// At the first connect, a wrong address or a refused declaration is the programmer's error and is reported at
		// once. Later it is an operator's change and may be undone. A queue that is away is neither, so connect waits
		// for it.
		hopeless := errors.Is(err, broker.ErrPermanent) ||
			errors.Is(err, broker.ErrRejected) ||
			errors.Is(err, errors.ErrUnsupported)
		if o.first && hopeless {
			return nil, fmt.Errorf("connect: %w", err)
		}
		if s.exhausted(o) {
			if o.tries == 0 {
				return nil, fmt.Errorf("connect: %w", err)
			}
			return nil, fmt.Errorf("connect, after %d retries: %w", o.tries, err)
		}
		o.tries++
		s.failed(err)
		if opened {
			o.pause = o.pauses.answered()
		} else {
			o.pause = o.pauses.NextBackOff()
		}
		s.cfg.Log.Warn("cannot connect; trying again", "retry_in", logs.Rounded(o.pause), "err", err)
		if offline {
			o.first = false
			return nil, nil
		}
		if !s.rest(ctx, o.pause) {
			return nil, fmt.Errorf("connect: %w: last error: %w", ctx.Err(), err)
		}
	}
}

// exhausted reports whether an outage has used up its retries.
func (s *Supervisor) exhausted(o *outage) bool {
	retries := s.cfg.Retries
	if o.first && !s.cfg.Offline {
		retries = s.cfg.First
	}
	return retries >= 0 && o.tries >= retries
}

// rest waits for d or until Hurry is called. It returns false if ctx ends first.
func (s *Supervisor) rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.early:
		return true
	case <-ctx.Done():
		return false
	}
}

// Hurry ends the pause before the next try, since there may be no time for a later one.
func (s *Supervisor) Hurry() {
	select {
	case s.early <- struct{}{}:
	default:
	}
}

// try opens and prepares one session. It also reports whether a node accepted the connection.
func (s *Supervisor) try(ctx context.Context, first bool) (_ broker.Session, opened bool, _ error) {
	ctx, cancel := context.WithTimeout(ctx, OpenTimeout)
	defer cancel()
	session, err := s.cfg.Open(ctx)
	if err != nil {
		return nil, false, err
	}
	if err := s.cfg.Prepare(ctx, session, first); err != nil {
		s.discard(session)
		return nil, true, err
	}
	return session, true, nil
}
