// Package link keeps one broker session alive, and declares in each new one what its users need. It knows no transport.
package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/fault"
)

const (
	// OpenTimeout bounds one try to connect, declarations included.
	OpenTimeout = 30 * time.Second
	// CloseTimeout bounds the clean end of a session or consumer if no caller waits for it.
	CloseTimeout = 5 * time.Second
	// StableAfter is how long a session or consumer must live before its successor is opened without a pause and the
	// pauses start small again. Without it, a broker that accepts and drops at once would be dialled in a hot loop.
	StableAfter = 5 * time.Second
)

// State is the state of the connection. The root package has it too, and documents it.
type State string

const (
	Connected  State = "connected"
	Connecting State = "connecting"
	GivenUp    State = "given up"
	Closed     State = "closed"
)

// Config configures a Supervisor.
type Config struct {
	Open func(context.Context) (broker.Session, error)
	// Declares a new session's topology; true = the first session.
	Prepare  func(context.Context, broker.Session, bool) error
	First    int           // retries of the first connect; negative = for ever
	Retries  int           // retries of one outage; likewise
	Offline  bool          // Start need not wait for a connection
	Interval time.Duration // between tries; 0 = growing pauses
	Log      *slog.Logger
	Changed  func(State, error) // called when the link is lost, given up or stands again, and once if Start ends without a connection
}

// Supervisor keeps one session alive. When a session dies with a reason, it opens the next one, until it is stopped or
// the retries of one outage are used up. Its methods may be called by many goroutines at once.
type Supervisor struct {
	cfg Config

	early  chan struct{}      // ends the pause before the next try; buffers one
	cancel context.CancelFunc // ends run
	ended  chan struct{}      // closed when run has returned

	mu      sync.Mutex // guards the fields below; never held across I/O
	status  Status
	last    broker.Session // the latest session, dead or alive
	changed chan struct{}  // closed at every change of status, then replaced
}

// Status is the state of the link at one moment.
type Status struct {
	State   State
	Session broker.Session // nil unless connected
	Since   time.Time
	Err     error     // the last problem; nil if there was none
	ErrAt   time.Time // time of Err
	Opened  int64     // sessions opened so far
}

// Over returns why there will be no more sessions. It Is ErrServerClosed.
func (s Status) Over() error {
	if s.State != GivenUp {
		return fault.ErrServerClosed
	}
	since := s.Since.UTC().Format(time.RFC3339)
	// s.Err is not wrapped: it may be the outcome of another publish.
	return fault.New(fmt.Sprintf("the connection was given up at %s: %v", since, s.Err), fault.ErrServerClosed)
}

// New returns a supervisor that does nothing before Start.
func New(cfg Config) *Supervisor {
	return &Supervisor{
		cfg:     cfg,
		early:   make(chan struct{}, 1),
		ended:   make(chan struct{}),
		changed: make(chan struct{}),
		status:  Status{State: Connecting, Since: time.Now()},
	}
}

// set changes the status and wakes everyone who waits for a change. It keeps the last problem until there is a new one.
// Closed is final: set then returns false and changes nothing.
func (s *Supervisor) set(state State, session broker.Session, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.State == Closed {
		return false
	}
	next := Status{State: state, Session: session, Since: time.Now(), Err: err, Opened: s.status.Opened}
	next.ErrAt = next.Since
	if err == nil {
		next.Err, next.ErrAt = s.status.Err, s.status.ErrAt
	}
	if session != nil {
		next.Opened++
		s.last = session
	}
	s.status = next
	close(s.changed)
	s.changed = make(chan struct{})
	return true
}

// failed records why a try did not succeed, for Health.
func (s *Supervisor) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Err, s.status.ErrAt = err, time.Now()
}

// Now returns the status at this moment and a channel that is closed at its next change.
func (s *Supervisor) Now() (Status, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status, s.changed
}

// Ended returns a channel that is closed when there will be no more sessions.
func (s *Supervisor) Ended() <-chan struct{} { return s.ended }

// Session returns the current session, or at once an error that Is ErrNotSent.
func (s *Supervisor) Session() (broker.Session, error) {
	now, _ := s.Now()
	switch now.State {
	case Connected:
		return now.Session, nil
	case Connecting:
		return nil, fault.ErrDisconnected
	default:
		return nil, now.Over()
	}
}

// Await waits for a session other than not, which is dead for its caller. The error Is ErrNotSent.
func (s *Supervisor) Await(ctx context.Context, not broker.Session) (broker.Session, error) {
	for {
		now, changed := s.Now()
		switch {
		case now.State == Connected && now.Session != not:
			return now.Session, nil
		case now.State == GivenUp || now.State == Closed:
			return nil, now.Over()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.EndedBefore(fault.ErrDisconnected, ctx)
		}
	}
}

// WaitForQueues calls f, and calls it again while it fails because a queue is away, each time with the current session.
// It returns the error of the last call, or ErrServerClosed.
func (s *Supervisor) WaitForQueues(ctx context.Context, session broker.Session, f func(broker.Session) error) error {
	for {
		err := f(session)
		again := errors.Is(err, broker.ErrUnavailable) && ctx.Err() == nil
		if !again || !Sleep(ctx, jittered(awayPause).NextBackOff()) {
			return err
		}
		next, waited := s.Await(ctx, nil)
		switch {
		case errors.Is(waited, fault.ErrServerClosed):
			return waited
		case waited != nil:
			return err
		}
		session = next
	}
}
