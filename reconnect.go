package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

const (
	// openTimeout bounds one try to connect, declarations included.
	openTimeout = 30 * time.Second
	// closeTimeout bounds the clean end of a session or consumer if no caller waits for it.
	closeTimeout = 5 * time.Second
	// settleTimeout is how long a stopping worker keeps trying to write a dead letter.
	settleTimeout = 30 * time.Second
	// stableAfter is how long a session or consumer must live before its successor is opened without a pause and the
	// pauses start small again. Without it, a broker that accepts and drops at once would be dialled in a hot loop.
	stableAfter = 5 * time.Second
)

// State is the state of a server's connection.
type State string

const (
	StateConnected  State = "connected"
	StateConnecting State = "connecting" // lost, and the server is reconnecting
	StateGivenUp    State = "given up"   // lost for good, because the retries are used up
	StateClosed     State = "closed"     // closed by Close or Shutdown
)

// supervisor keeps one broker session alive. It knows no transport. When a session dies with a reason, the supervisor
// opens the next one, until it is stopped or the retries of one outage are used up.
type supervisor struct {
	open    func(context.Context) (broker.Session, error)
	prepare func(context.Context, broker.Session, bool) error // declares a new session's topology; true = the first session
	first   int                                               // retries of the first connect; negative = for ever
	retries int                                               // retries of one outage; likewise
	offline bool                                              // start need not wait for a connection
	pause   func() pacing
	log     *slog.Logger
	hooks   *Hooks

	exchangeGone func() // declares everything again after the exchange was deleted; does not block

	early  chan struct{}      // ends the pause before the next try; buffers one
	cancel context.CancelFunc // ends run
	ended  chan struct{}      // closed when run has returned

	mu      sync.Mutex // guards the fields below; never held across I/O
	link    link
	last    broker.Session // the latest session, dead or alive
	changed chan struct{}  // closed at every change of link, then replaced
}

// link is the state of the connection at one moment.
type link struct {
	state   State
	session broker.Session // nil unless connected
	since   time.Time
	err     error     // the last problem; nil if there was none
	errAt   time.Time // time of err
	opened  int64     // sessions opened so far
}

// over returns why there will be no more sessions.
func (l link) over() error {
	if l.state != StateGivenUp {
		return ErrServerClosed
	}
	// l.err is not wrapped: it may be the outcome of another publish.
	return &sentinel{fmt.Sprintf("the connection was given up at %s: %v", l.since.UTC().Format(time.RFC3339), l.err), ErrServerClosed}
}

func newSupervisor(cfg *ServerConfig, log *slog.Logger, prepare func(context.Context, broker.Session, bool) error) *supervisor {
	first, retries := cfg.retries()
	interval := time.Duration(cfg.ReconnectionIntervalSeconds) * time.Second
	return &supervisor{
		open:    cfg.Broker.Open,
		prepare: prepare,
		first:   first,
		retries: retries,
		offline: cfg.Outbox != nil,
		early:   make(chan struct{}, 1),
		pause:   func() pacing { return pacing{reconnectPauses(interval), interval == 0} },
		log:     log,
		hooks:   &cfg.Hooks,
		ended:   make(chan struct{}),
		changed: make(chan struct{}),
		link:    link{state: StateConnecting, since: time.Now()},
	}
}

// retries returns the configured retries of the first connect and of one outage. Negative means for ever.
func (c *ServerConfig) retries() (first, outage int) {
	switch n := c.ReconnectionRetries; {
	case c.ReconnectionRetriesForever:
		return -1, -1
	case n == 0:
		return 0, -1
	default:
		return max(n, 0), max(n, 0)
	}
}

// start makes the first connection, bounded by ctx, and keeps it up from then on. After an error nothing runs. A
// supervisor that may start offline tries once. If that try fails for a reason that may pass, the first outage has
// begun.
func (s *supervisor) start(ctx context.Context) error {
	o := &outage{pauses: s.pause(), first: true}
	session, err := s.connect(ctx, o)
	if err != nil {
		return err
	}
	if session != nil {
		s.set(StateConnected, session, nil)
		s.log.Info("connected", where(session)...)
	}
	run, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go s.run(run, session, o)
	return nil
}

// run waits for the session to die and opens the next one. It ends when stop has cancelled ctx or the connection is
// given up. Without a session it continues the outage that start began.
func (s *supervisor) run(ctx context.Context, session broker.Session, o *outage) {
	defer close(s.ended)
	lost, connected := time.Now(), "connected again"
	if session == nil {
		connected = "connected"
		l, _ := s.now()
		s.tell(s.hooks.Disconnected, StateConnecting, l.err)
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
			if !s.set(StateConnecting, nil, session.Err()) {
				return
			}
			lost = time.Now()
			s.log.Warn("connection lost", "err", brief(session.Err()))
			s.tell(s.hooks.Disconnected, StateConnecting, session.Err())
			if time.Since(born) >= stableAfter {
				o.pauses.Reset()
			} else if !s.rest(ctx, o.pauses.answered()) {
				return
			}
		}
		var err error
		if session, err = s.connect(ctx, o); err != nil {
			if ctx.Err() == nil {
				s.set(StateGivenUp, nil, err)
				s.log.Error("connection given up", "outage", rounded(time.Since(lost)), "err", err)
				s.tell(s.hooks.Disconnected, StateGivenUp, err)
			}
			return
		}
		s.log.Info(connected, append(where(session), "outage", rounded(time.Since(lost)))...) // before the workers log that they go on
		connected = "connected again"
		if !s.set(StateConnected, session, nil) {
			s.discard(session)
			return
		}
		s.tell(s.hooks.Reconnected, StateConnected, nil)
	}
}

// where returns the node of a session as log attributes.
func where(session broker.Session) []any {
	if node := session.Status().Node; node != "" {
		return []any{"node", node}
	}
	return nil
}

func (s *supervisor) tell(hook func(ConnectionEvent), state State, err error) {
	if hook != nil {
		fireApart(s.log, hook, ConnectionEvent{state, err})
	}
}

// outage is the time without a session, from the first try to connect.
type outage struct {
	pauses pacing
	first  bool          // start waits for the outcome
	tries  int           // failed tries
	pause  time.Duration // pause before the next try
}

// connect tries until there is a prepared session, the retries are used up or ctx ends. If it returns nil, nil, start
// goes on without a session.
func (s *supervisor) connect(ctx context.Context, o *outage) (broker.Session, error) {
	for {
		session, opened, err := s.try(ctx, o.first)
		if err == nil {
			o.first, o.tries = false, 0
			return session, nil
		}
		offline := o.first && s.offline
		// When starting offline, a deadline only bounds how long start waits. A canceled start needs no server.
		if ctx.Err() != nil && !(offline && errors.Is(ctx.Err(), context.DeadlineExceeded)) {
			return nil, fmt.Errorf("connect: %w: last error: %w", ctx.Err(), err)
		}
		// At the first connect, a wrong address or a refused declaration is the programmer's error and is reported at
		// once. Later it is an operator's change and may be undone. A queue that is away is neither, so connect waits
		// for it.
		if o.first && (errors.Is(err, broker.ErrPermanent) || errors.Is(err, broker.ErrRejected) || errors.Is(err, errors.ErrUnsupported)) {
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
		s.log.Warn("cannot connect; trying again", "retry_in", rounded(o.pause), "err", err)
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
func (s *supervisor) exhausted(o *outage) bool {
	retries := s.retries
	if o.first && !s.offline {
		retries = s.first
	}
	return retries >= 0 && o.tries >= retries
}

// rest waits for d or until hurry is called. It returns false if ctx ends first.
func (s *supervisor) rest(ctx context.Context, d time.Duration) bool {
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

// hurry ends the pause before the next try, since there may be no time for a later one.
func (s *supervisor) hurry() {
	select {
	case s.early <- struct{}{}:
	default:
	}
}

// try opens and prepares one session. It also reports whether a node accepted the connection.
func (s *supervisor) try(ctx context.Context, first bool) (_ broker.Session, opened bool, _ error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	session, err := s.open(ctx)
	if err != nil {
		return nil, false, err
	}
	if err := s.prepare(ctx, session, first); err != nil {
		s.discard(session)
		return nil, true, err
	}
	return session, true, nil
}

// discard closes a session that never came into use.
func (s *supervisor) discard(session broker.Session) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := session.Close(ctx); err != nil {
		s.log.Debug("an unused session did not close", "err", brief(err, "close session: "))
	}
}

// stop ends the supervision and closes the session. Until ctx ends, it waits for everything that was handed to the
// broker. Then the session cuts the connection. If stop is called twice, each call waits.
func (s *supervisor) stop(ctx context.Context) error {
	s.set(StateClosed, nil, nil) // first, so that callers waiting for a session return at once
	s.cancel()
	late := time.NewTimer(closeTimeout)
	defer late.Stop()
	var err error
	select {
	case <-s.ended: // package broker requires Open to return soon after its ctx ended
	case <-late.C:
		// The broker breaks that rule, or a hook does not return, perhaps because it called Close. run discards a
		// session that is still opened.
		err = errors.New("the broker does not return from Open, or a hook not from its call")
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

// set changes the link and wakes everyone who waits for a change. It keeps the last problem until there is a new one.
// StateClosed is final: set then returns false and changes nothing.
func (s *supervisor) set(state State, session broker.Session, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link.state == StateClosed {
		return false
	}
	next := link{state: state, session: session, since: time.Now(), err: err, opened: s.link.opened}
	next.errAt = next.since
	if err == nil {
		next.err, next.errAt = s.link.err, s.link.errAt
	}
	if session != nil {
		next.opened++
		s.last = session
	}
	s.link = next
	close(s.changed)
	s.changed = make(chan struct{})
	return true
}

// failed records why a try did not succeed, for Health.
func (s *supervisor) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link.err, s.link.errAt = err, time.Now()
}

// now returns the link at this moment and a channel that is closed at its next change.
func (s *supervisor) now() (link, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link, s.changed
}

// session returns the current session, or at once an error that Is ErrNotSent.
func (s *supervisor) session() (broker.Session, error) {
	l, _ := s.now()
	switch l.state {
	case StateConnected:
		return l.session, nil
	case StateConnecting:
		return nil, ErrDisconnected
	default:
		return nil, l.over()
	}
}

// await waits for a session other than not, which is dead for its caller. The error Is ErrNotSent.
func (s *supervisor) await(ctx context.Context, not broker.Session) (broker.Session, error) {
	for {
		l, changed := s.now()
		switch {
		case l.state == StateConnected && l.session != not:
			return l.session, nil
		case l.state == StateGivenUp || l.state == StateClosed:
			return nil, l.over()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, endedBefore(ErrDisconnected, ctx)
		}
	}
}

// endedBefore returns the outcome of a publish whose ctx ended. It quotes the cause and does not wrap it, because the
// cause may be any error, even one that Is another outcome.
func endedBefore(outcome error, ctx context.Context) error {
	err := ctx.Err()
	if cause := context.Cause(ctx); cause != err {
		return fmt.Errorf("%w: %w (%v)", outcome, err, cause)
	}
	return fmt.Errorf("%w: %w", outcome, err)
}
