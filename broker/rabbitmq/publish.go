package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

const (
	// window is how many messages, orphans excepted, may be unconfirmed. Above about 1,000 RabbitMQ gets no faster.
	window = 1000
	// reserve is how much of the window is kept for settling, so that busy publishers do not hold it up.
	reserve = 64
	// maxUnanswered is how many orphans there may be. Above it, channels that have only orphans are given up.
	maxUnanswered = 10 * window
)

// publisher owns the publishing connection and its channels.
type publisher struct {
	s    *session
	conn *conn
	gate gate

	publishSlots chan struct{} // one taken for every message that is not an orphan
	settleSlots  chan struct{}
	ports        [ports]port

	maxUnanswered int // see the constant; tests set it

	mu        sync.Mutex             // guards what follows, and parts of ports, pipes and flights
	orphans   int                    // orphaned flights
	leaving   []*pipe                // to be closed by unlock
	fits      int                    // bodies up to this size are not too large
	maxSize   int                    // largest body allowed, learnt from a refusal; 0 = not known
	exchanges map[string]*scouting   // those that were published to
	quotas    map[destination]*quota // those in use
}

func newPublisher(s *session, c *conn) (*publisher, error) {
	p := &publisher{
		s:            s,
		conn:         c,
		publishSlots: make(chan struct{}, window-reserve),
		settleSlots:  make(chan struct{}, reserve),
		exchanges:    make(map[string]*scouting),
		fits:         16 << 10, // RabbitMQ's own limit is 16 MiB or more
		quotas:       make(map[destination]*quota),

		maxUnanswered: maxUnanswered,
	}
	for i := range p.ports {
		p.ports[i].p, p.ports[i].writing = p, newTurn()
	}
	pp, err := p.ports[defaultPort].openPipe()
	if err != nil {
		return nil, err
	}
	p.ports[defaultPort].use(pp)
	return p, nil
}

// unlock unlocks mu and closes the channels in leaving. It does so on goroutines of the session, because closing waits
// for the broker.
func (p *publisher) unlock() {
	leaving := p.leaving
	p.leaving = nil
	p.mu.Unlock()
	for _, pp := range leaving {
		if p.s.begin(&p.s.goroutines) != nil {
			return // they end with the connection
		}
		go func() {
			defer p.s.goroutines.done()
			_ = pp.ch.Close()
		}()
	}
}

// unanswered returns the number of orphans.
func (p *publisher) unanswered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.orphans
}

// watchBlocked follows the broker's notices until the connection ends.
func (p *publisher) watchBlocked() {
	for b := range p.conn.blocked {
		p.conn.socket.blocked.Store(b.Active)
		p.gate.set(b.Active, b.Reason)
	}
}

// Publish implements [broker.Session]. The first delayed message of a Broker also blocks until the levels are declared.
// If RabbitMQ refuses the declaration, the message is ErrRejected.
func (s *session) Publish(ctx context.Context, msgs []broker.Message, done func(i int, err error)) {
	if err := s.begin(&s.publishing); err != nil {
		for i := range msgs {
			done(i, fmt.Errorf("%w: %w", broker.ErrNotSent, err))
		}
		return
	}
	defer s.publishing.done()
	for i := range msgs {
		s.publish.send(ctx, &msgs[i], s.publish.publishSlots, exactDigits, func(err error) { done(i, err) })
	}
}

// confirm publishes one message in the part of the window kept for settling, and waits for its outcome. If ctx ends
// first, the error is ErrUnconfirmed.
func (p *publisher) confirm(ctx context.Context, m *broker.Message) error {
	if err := p.s.begin(&p.s.publishing); err != nil {
		return fmt.Errorf("%w: %w", broker.ErrNotSent, err)
	}
	defer p.s.publishing.done()
	outcome := make(chan error, 1)
	p.send(ctx, m, p.settleSlots, retryDigits, func(err error) { outcome <- err })
	select {
	case err := <-outcome:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-outcome:
		return err
	default:
		return fmt.Errorf("%w: no answer yet: %w", broker.ErrUnconfirmed, ctx.Err())
	}
}

// send writes one message and calls done once: here if nothing was written, otherwise on a goroutine of its own, one
// for every message in flight. So a queue that does not answer holds up only its own messages, and a socket that takes
// nothing holds up no caller longer than ctx. A delay is rounded to the given number of digits. The caller is counted
// in session.publishing.
func (p *publisher) send(ctx context.Context, m *broker.Message, slots chan struct{}, digits int, done func(error)) {
	f, err := p.prepare(ctx, m, digits)
	if err != nil {
		done(err)
		return
	}
	f.quota = destination{f.answering(), slots == p.settleSlots}
	if err := p.board(ctx, f, slots); err != nil {
		if !errors.Is(err, broker.ErrRejected) {
			err = p.notSent(err)
		}
		done(err)
		return
	}
	written := make(chan struct{})
	p.s.publishing.add()
	go func() {
		err := p.fly(ctx, f, written)
		if f.deleted(err) {
			err = p.rewrite(ctx, f)
		}
		end := p.land(f, err)
		done(p.explain(f, err))
		end()
	}()
	select {
	case <-written: // the next message comes after it
		if f.port == &p.ports[scoutPort] {
			_ = p.yield(ctx, f) // also in its queue, though that goes through another channel
		}
	case <-ctx.Done():
	}
}

// board waits until f may be written: for a place in its destination's quota, for a place in the window, and for its
// port's turn, which it still holds when it returns. It holds nothing while it waits for another flight with f's ID and
// destination.
func (p *publisher) board(ctx context.Context, f *flight, slots chan struct{}) error {
	for {
		if err := p.reserve(ctx, f); err != nil {
			return err
		}
		err := enter(ctx, f, slots, p.s.dead)
		var other *flight
		if err == nil {
			f.port, err = p.portOf(f)
		}
		if err == nil {
			other, err = f.port.board(ctx, f)
		}
		if err == nil && other == nil {
			return nil
		}
		p.mu.Lock()
		p.leave(f)
		p.restore(f, false)
		p.mu.Unlock()
		if err == nil {
			err = p.yield(ctx, other)
		}
		if err != nil {
			return err
		}
	}
}

// yield waits until another flight is over, or until a moment has passed, after which the situation may have changed.
func (p *publisher) yield(ctx context.Context, other *flight) error {
	t := time.NewTimer(scoutPause)
	defer t.Stop()
	select {
	case <-other.over:
		return nil
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-p.s.dead:
		return errOver
	}
}

// explain distinguishes a queue that is away from one that does not exist. A returned message is in no queue, so it
// counts as not sent.
func (p *publisher) explain(f *flight, err error) error {
	if f.delay != nil || !errors.Is(err, broker.ErrUnroutable) {
		return err
	}
	if away := p.s.whyUnroutable(f.to.exchange, f.to.key); away != nil {
		return fmt.Errorf("%w: %w", broker.ErrNotSent, away)
	}
	return err
}

// prepare makes the flight of a message, and declares the levels for the first delayed one. An error is the message's
// outcome.
func (p *publisher) prepare(ctx context.Context, m *broker.Message, digits int) (f *flight, err error) {
	f = &flight{
		id: m.ID, exchange: m.Exchange, key: m.RoutingKey, to: target{m.Exchange, m.RoutingKey}, size: len(m.Body),
		fate: make(chan fate, 1), over: make(chan struct{}),
	}
	if err := p.mayEndChannel(m); err != nil {
		return nil, err
	}
	frame := p.conn.Config.FrameSize
	if time.Until(m.NotBefore) > 0 {
		if f.delay, err = p.s.newDelay(m, digits); err != nil {
			return nil, err
		}
		if frame > 0 {
			frame = max(1, frame-f.delay.room())
		}
		// An x-death header would make RabbitMQ up to 3.13 drop the message on its way, as a cycle.
		forward := m.Forward()
		m = &forward
	}
	if f.pub, err = encode(m, frame); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, p.notSent(err)
	}
	if f.delay != nil {
		if f.delay.levels, err = p.s.declareLevels(ctx); err != nil {
			return nil, p.unprepared(err)
		}
		p.s.startProbes()
	}
	return f, nil
}

// mayEndChannel refuses messages over which RabbitMQ would close the channel, beside those that encode refuses.
func (p *publisher) mayEndChannel(m *broker.Message) error {
	p.mu.Lock()
	limit := p.maxSize
	p.mu.Unlock()
	if limit > 0 && len(m.Body) > limit {
		return fmt.Errorf("%d bytes, and the broker accepts at most %d: %w", len(m.Body), limit, broker.ErrTooLarge)
	}
	for _, name := range [...]string{"CC", "BCC"} { // RabbitMQ reads more routing keys there
		v, ok := m.Headers[name]
		if _, list := v.([]any); ok && !list {
			return fmt.Errorf("header %q has type %T, want a list of routing keys: %w", name, v, broker.ErrRejected)
		}
	}
	if m.ReplyTo == "amq.rabbitmq.reply-to" { // it needs a consumer on the same channel
		return fmt.Errorf("reply-to %q: %w: %w", m.ReplyTo, broker.ErrRejected, errors.ErrUnsupported)
	}
	return nil
}

// enter waits for a place in the window.
func enter(ctx context.Context, f *flight, slots chan struct{}, dead <-chan struct{}) error {
	select {
	case slots <- struct{}{}:
		f.slots = slots
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-dead:
		return errOver
	}
}

// waitForName boards f, however long other flights hold its name.
func (p *publisher) waitForName(ctx context.Context, f *flight) error {
	for {
		other, err := f.port.board(ctx, f)
		if other == nil {
			return err
		}
		if err := p.yield(ctx, other); err != nil {
			return err
		}
	}
}

// notSent makes the error of a wait that ended before the write.
func (p *publisher) notSent(err error) error {
	if errors.Is(err, errOver) {
		err = p.s.Err()
	}
	return fmt.Errorf("%w: %w", broker.ErrNotSent, err)
}
