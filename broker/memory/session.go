package memory

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Why a session died.
var (
	errKilled = fmt.Errorf("%w: killed", broker.ErrSessionLost)
	errClosed = fmt.Errorf("%w: %w", broker.ErrSessionLost, broker.ErrClosed)
)

// session implements [broker.Session]. Broker.mu guards all fields but done, dead and publishing.
type session struct {
	broker *Broker
	done   chan struct{} // closed when err is set and no done function is left to run
	err    error         // nil while it lives
	dead   atomic.Bool   // err is set

	// publishing counts the calls of Publish that have not returned. It keeps Done open until their done functions have
	// run. It needs no lock: a dying session sees that it is 0, or the last call sees that the session is dead.
	publishing atomic.Int64

	consumers map[string]*consumer // by tag, the live ones
	owners    map[*owner]struct{}  // live consumers, and owners of deliveries that can still be settled
	ephemeral map[*queue]struct{}
	tags      int // tags made for consumers without one
}

// Capabilities implements [broker.Session].
func (s *session) Capabilities() broker.Capabilities {
	return broker.Capabilities{Delay: true, Fanout: true, Ephemeral: true, KeepsPlace: true, ExactLosses: true}
}

// enter locks the broker for one operation of this session. If the session is dead or ctx has ended, it returns the
// reason and locks nothing.
func (s *session) enter(ctx context.Context) error {
	ended := ctx.Err() // before the lock: a context may be anybody's code
	s.broker.mu.Lock()
	err := s.err
	if err == nil {
		err = ended
	}
	if err != nil {
		s.broker.mu.Unlock()
	}
	return err
}

// TryGet implements [broker.Session]. It does not block.
func (s *session) TryGet(ctx context.Context, name string, max int) ([]broker.Delivery, error) {
	if err := s.enter(ctx); err != nil {
		return nil, fmt.Errorf("get from queue %q: %w", name, err)
	}
	defer s.broker.mu.Unlock()
	q, err := s.find(name)
	if err != nil {
		return nil, fmt.Errorf("get from queue %q: %w", name, err)
	}
	n := min(max, q.ready())
	if n <= 0 {
		return nil, nil
	}
	o := &owner{session: s, queue: q, lost: make(chan struct{})}
	s.owners[o] = struct{}{}
	got := make([]broker.Delivery, n)
	for i := range got {
		got[i] = q.handOut(o)
	}
	return got, nil
}

// Inspect implements [broker.Session]. It does not block.
func (s *session) Inspect(ctx context.Context, name string) (broker.QueueInfo, error) {
	if err := s.enter(ctx); err != nil {
		return broker.QueueInfo{}, fmt.Errorf("inspect queue %q: %w", name, err)
	}
	defer s.broker.mu.Unlock()
	q, err := s.find(name)
	if err != nil {
		return broker.QueueInfo{}, fmt.Errorf("inspect queue %q: %w", name, err)
	}
	return q.info(), nil
}

// Purge implements [broker.Session]. It does not block.
func (s *session) Purge(ctx context.Context, name string) (int, error) {
	if err := s.enter(ctx); err != nil {
		return 0, fmt.Errorf("purge queue %q: %w", name, err)
	}
	defer s.broker.mu.Unlock()
	q, err := s.find(name)
	if err != nil {
		return 0, fmt.Errorf("purge queue %q: %w", name, err)
	}
	n := q.purge()
	s.broker.signal()
	return n, nil
}

// Delete implements [broker.Session]. It does not block.
func (s *session) Delete(ctx context.Context, name string) error {
	if err := s.enter(ctx); err != nil {
		return fmt.Errorf("delete queue %q: %w", name, err)
	}
	defer s.broker.mu.Unlock()
	q := s.broker.queues[name]
	if q == nil {
		return nil
	}
	if err := s.checkLock(q); err != nil {
		return fmt.Errorf("delete queue %q: %w", name, err)
	}
	s.broker.deleteQueue(q)
	return nil
}

// Blocked implements [broker.Session]. This broker never blocks.
func (s *session) Blocked() (reason string, blocked bool) { return "", false }

// Status implements [broker.Session]. It returns the zero Status, since nothing goes wrong here.
func (s *session) Status() broker.Status { return broker.Status{} }

// Done implements [broker.Session].
func (s *session) Done() <-chan struct{} { return s.done }

// Err implements [broker.Session].
func (s *session) Err() error {
	s.broker.mu.Lock()
	defer s.broker.mu.Unlock()
	return s.err
}

// Close implements [broker.Session]. It waits only for done functions that other goroutines are running, since every
// message is settled and confirmed at once.
func (s *session) Close(ctx context.Context) error {
	b := s.broker
	b.mu.Lock()
	if s.err == nil {
		b.end(map[*session]struct{}{s: {}}, errClosed)
	}
	b.mu.Unlock()
	select {
	case <-s.done: // preferred even if ctx has ended
		return nil
	default:
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close session: a publish has not returned: %w", ctx.Err())
	}
}

// end ends live sessions in one step: first all consumers end, then all deliveries are given back, and only then other
// consumers are served. Otherwise a message would pass through consumers that are about to end.
func (b *Broker) end(dying map[*session]struct{}, reason error) {
	touched := make(map[*queue]struct{})
	for s := range dying {
		s.err = reason
		s.dead.Store(true)
		for _, c := range s.consumers {
			touched[c.queue] = struct{}{}
			c.halt(reason)
		}
	}
	for s := range dying {
		for o := range s.owners {
			touched[o.queue] = struct{}{}
			o.lose(reason)
		}
		for q := range s.ephemeral {
			b.deleteQueue(q)
		}
		delete(b.sessions, s)
		s.finish()
	}
	if len(b.sessions) == 0 {
		b.arm()
	}
	for q := range touched {
		q.dispatch()
	}
}

// finish closes done once the session is dead and every done function has run.
func (s *session) finish() {
	if s.err == nil || s.publishing.Load() > 0 {
		return
	}
	select {
	case <-s.done: // a publish on a dead session
	default:
		close(s.done)
	}
}
