package rabbitmq

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// session implements [broker.Session] with two connections.
type session struct {
	queueType string // of durable queues that name none
	can       broker.Capabilities
	delays    delays
	publish   *publisher
	consume   *conn // everything but publishing, since an exclusive queue belongs to its connection
	channels  channels
	routes    routes
	silence   silence
	turns     turns

	node string // the address, without credentials; set before anybody has the session

	dead chan struct{} // closed when err is set
	done chan struct{} // closed after dead, once nothing is under way

	publishing tally // callers whose ctx has not ended
	goroutines tally // all others

	mu      sync.Mutex // guards what follows
	closing bool       // nothing new may begin
	err     error      // why the session died
	lanes   map[*lane]struct{}
	tags    map[string]bool // of live consumers
	tagged  int             // number of tags made up

	unreadable map[string]int // received messages with unreadable headers, by queue
}

// hangUpTimeout bounds the wait for the broker to confirm the end of a connection.
const hangUpTimeout = 5 * time.Second

func newSession(queueType string, m *memory, publish, consume *conn, leave func() bool) (*session, error) {
	s := &session{
		queueType: queueType,
		can:       capabilitiesOf(publish.Properties, queueType),
		delays:    delays{memory: m},
		consume:   consume,
		channels:  newChannels(consume.Config.ChannelMax),
		dead:      make(chan struct{}),
		done:      make(chan struct{}),
		lanes:     make(map[*lane]struct{}),
		tags:      make(map[string]bool),
	}
	p, err := newPublisher(s, publish)
	if err != nil {
		return nil, err
	}
	s.publish = p
	runs := []func(){
		func() { s.watch(publish) }, func() { s.watch(consume) },
		func() { p.watchBlocked() }, func() { p.finish() },
	}
	if leave != nil {
		runs = append(runs, func() { s.watchSilence(leave) })
	}
	for _, run := range runs {
		s.goroutines.add()
		go func() {
			defer s.goroutines.done()
			run()
		}()
	}
	return s, nil
}

// Capabilities implements [broker.Session].
func (s *session) Capabilities() broker.Capabilities { return s.can }

// Blocked implements [broker.Session]: the broker is short of memory or disk. Retry and DeadLetter wait too. RabbitMQ
// notifies a connection only after it has published something.
func (s *session) Blocked() (reason string, ok bool) {
	if b := s.publish.gate.shut.Load(); b != nil {
		return b.reason, true
	}
	return "", false
}

// Status implements [broker.Session].
func (s *session) Status() broker.Status {
	return broker.Status{
		Node:     s.node,
		Channels: s.channels.status(), Unreadable: s.unreadables(),
		Unanswered: s.publish.unanswered(), Delays: s.delays.probes.late(time.Now()),
	}
}

// Done implements [broker.Session].
func (s *session) Done() <-chan struct{} { return s.done }

// Err implements [broker.Session].
func (s *session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// begin counts an operation as under way. If the session is dead or closing, it returns the reason instead.
func (s *session) begin(t *tally) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return s.err
	case s.closing:
		return errClosed
	}
	t.add()
	return nil
}

// die makes the session dead, once, and reports whether this call did. Everything that the session handed out is then
// lost. The caller that gets true ends the connections.
func (s *session) die(reason error) bool {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return false
	}
	s.closing, s.err = true, reason
	close(s.dead)
	lanes := s.openLanes()
	s.mu.Unlock()
	for _, l := range lanes {
		l.lose(reason)
	}
	go func() { // ends with done
		<-s.publishing.zero()
		<-s.goroutines.zero()
		close(s.done)
	}()
	return true
}

// openLanes returns the lanes; the caller holds mu.
func (s *session) openLanes() []*lane {
	lanes := make([]*lane, 0, len(s.lanes))
	for l := range s.lanes {
		lanes = append(lanes, l)
	}
	return lanes
}

// fail makes the session dead and ends its connections, unless it is dead already: Close ends them one after the other,
// and the end of the first must not cut off the acks on the second.
func (s *session) fail(reason error) {
	if s.die(reason) {
		s.publish.conn.socket.kill()
		s.consume.socket.kill()
	}
}

// watch waits for the end of a connection. The client may be stuck in a write when it reports the end; killing the
// socket frees it.
func (s *session) watch(c *conn) {
	e := <-c.closes
	c.socket.kill()
	s.fail(lost(c, e))
}

// ended reports whether the session is dead. If a connection has ended, ended waits until its watcher has recorded why.
func (s *session) ended() bool {
	if s.consume.IsClosed() || s.publish.conn.IsClosed() {
		<-s.dead
	}
	return s.Err() != nil
}

// Close implements [broker.Session]. It waits for publishes in flight, writes out the acks, and closes the connections
// gracefully, so when it returns nil the broker has taken everything. It waits at most five seconds for the connections
// to close.
func (s *session) Close(ctx context.Context) error {
	s.mu.Lock()
	second, died := s.closing, s.err != nil
	s.closing = true
	s.mu.Unlock()
	if second {
		select {
		case <-s.done:
			return nil
		case <-ctx.Done():
			if died {
				return nil
			}
			return fmt.Errorf("close session: %w", ctx.Err())
		}
	}

	var late error
	select {
	case <-s.publishing.zero():
	case <-s.dead:
	case <-ctx.Done():
		late = fmt.Errorf("close session: publishes are unconfirmed: %w", ctx.Err())
	}
	s.mu.Lock()
	lanes := s.openLanes()
	s.mu.Unlock()
	s.die(errClosed)
	for _, l := range lanes {
		select {
		case <-l.flushed:
		case <-ctx.Done():
		}
	}
	// If a queue does not answer, its channel keeps RabbitMQ from confirming the end of the connection. By now
	// everything is written.
	hanging, cancel := context.WithTimeout(ctx, hangUpTimeout)
	defer cancel()
	var hangUp sync.WaitGroup
	var cut atomic.Bool
	for _, c := range []*conn{s.publish.conn, s.consume} {
		hangUp.Go(func() {
			stop := context.AfterFunc(hanging, func() { cut.Store(true); c.socket.kill() })
			defer stop()
			// All that was published is confirmed. So a broker that blocks publishers, and does not read either, has
			// nothing to answer.
			if _, blocked := s.Blocked(); c.role == "consume" || !blocked {
				_ = c.Connection.Close() // returns when the broker has answered, or the socket has ended
			}
			c.socket.kill()
		})
	}
	hangUp.Wait()
	select {
	case <-s.done:
	case <-ctx.Done():
	}
	if late == nil && cut.Load() {
		late = fmt.Errorf("close session: the broker has not confirmed it: %w", hanging.Err())
	}
	return late
}

// call runs f on a goroutine of the session, since the client's calls take no context, and waits for it until ctx ends
// or the session dies. A result that comes too late goes to undo.
func call[T any](ctx context.Context, s *session, f func() (T, error), undo func(T)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	if err := s.begin(&s.goroutines); err != nil {
		return none, err
	}
	var v T
	var err error
	var taken atomic.Bool
	ready := make(chan struct{})
	go func() {
		defer s.goroutines.done()
		v, err = f()
		close(ready)
		if !taken.CompareAndSwap(false, true) && err == nil && undo != nil {
			undo(v)
		}
	}()
	var over error
	select {
	case <-ready:
		if err != nil && s.ended() { // the client's error about a dead connection explains nothing
			return none, s.Err()
		}
		return v, err
	case <-ctx.Done():
		over = ctx.Err()
	case <-s.dead:
		over = s.Err()
	}
	if !taken.CompareAndSwap(false, true) {
		// The result came in the same moment.
		<-ready
		if err == nil {
			return v, nil
		}
	}
	return none, over
}
