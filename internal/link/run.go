package link

import (
	"context"
	"errors"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/logs"
)

// Start makes the first connection, bounded by ctx, and keeps it up from then on. After an error nothing runs. A
// supervisor that may start offline tries once. If that try fails for a reason that may pass, the first outage has
// begun.
func (s *Supervisor) Start(ctx context.Context) error {
	o := &outage{pauses: newPacing(s.cfg.Interval), first: true}
	session, err := s.connect(ctx, o)
	if err != nil {
		return err
	}
	if session != nil {
		s.set(Connected, session, nil)
		s.cfg.Log.Info("connected", where(session)...)
	}
	run, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go s.run(run, session, o)
	return nil
}

// run waits for the session to die and opens the next one. It ends when Stop has cancelled ctx or the connection is
// given up. Without a session it continues the outage that Start began.
func (s *Supervisor) run(ctx context.Context, session broker.Session, o *outage) {
	defer close(s.ended)
	lost, connected := time.Now(), "connected again"
	if session == nil {
		connected = "connected"
		now, _ := s.Now()
		s.cfg.Changed(Connecting, now.Err)
		if !s.rest(ctx, o.pause) {
			return
		}
	}
	for {
		if session != nil {
			born := time.Now()
			select {
			case <-session.Done():
			case <-ctx.Done():
				return
			}
			if !s.set(Connecting, nil, session.Err()) {
				return
			}
			lost = time.Now()
			s.cfg.Log.Warn("connection lost", "err", logs.Brief(session.Err()))
			s.cfg.Changed(Connecting, session.Err())
			if time.Since(born) >= StableAfter {
				o.pauses.Reset()
			} else if !s.rest(ctx, o.pauses.answered()) {
				return
			}
		}
		var err error
		if session, err = s.connect(ctx, o); err != nil {
			if ctx.Err() == nil {
				s.set(GivenUp, nil, err)
				s.cfg.Log.Error("connection given up", "outage", logs.Rounded(time.Since(lost)), "err", err)
				s.cfg.Changed(GivenUp, err)
			}
			return
		}
		// Before the workers log that they go on.
		s.cfg.Log.Info(connected, append(where(session), "outage", logs.Rounded(time.Since(lost)))...)
		connected = "connected again"
		if !s.set(Connected, session, nil) {
			s.discard(session)
			return
		}
		s.cfg.Changed(Connected, nil)
	}
}

// where returns the node of a session as log attributes.
func where(session broker.Session) []any {
	if node := session.Status().Node; node != "" {
		return []any{"node", node}
	}
	return nil
}

// discard closes a session that never came into use.
func (s *Supervisor) discard(session broker.Session) {
	ctx, cancel := context.WithTimeout(context.Background(), CloseTimeout)
	defer cancel()
	if err := session.Close(ctx); err != nil {
		s.cfg.Log.Debug("cannot close an unused session", "err", logs.Brief(err, "close session: "))
	}
}

// Stop ends the supervision and closes the session. Until ctx ends, it waits for everything that was handed to the
// broker. Then the session cuts the connection. If Stop is called twice, each call waits.
func (s *Supervisor) Stop(ctx context.Context) error {
	s.set(Closed, nil, nil) // first, so that callers waiting for a session return at once
	s.cancel()
	late := time.NewTimer(CloseTimeout)
	defer late.Stop()
	var err error
	select {
	case <-s.ended: // package broker requires Open to return soon after its ctx ended
	case <-late.C:
		// The broker breaks that rule, or a hook does not return, perhaps because it called Close. run discards a
		// session that is still opened.
		err = errors.New("the broker has not returned from Open, or a hook has not returned")
	}
	s.mu.Lock()
	session := s.last // the final one, since set accepts no more
	s.mu.Unlock()
	if session == nil { // there was none
		return err
	}
	if e := session.Close(ctx); e != nil {
		err = errors.Join(err, e)
	}
	return err
}
