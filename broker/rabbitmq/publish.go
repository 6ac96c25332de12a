package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

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

	maxUnanswered int          // see the constant; tests set it
	opening       turn         // so that notes.opened is the channel that was just opened
	maxSize       atomic.Int64 // largest body allowed, learnt from a refusal; 0 = not known

	mu        sync.Mutex             // guards what follows, and parts of callers, ports, pipes and flights
	orphans   int                    // orphaned flights
	ended     []outcome              // to be reported by unlock
	spare     []outcome              // a buffer for ended
	leaving   []*pipe                // to be closed by unlock
	pipes     []*pipe                // those that have not ended, the latest last
	fits      int                    // bodies up to this size are not too large
	exchanges map[string]*scouting   // those that were published to
	quotas    map[destination]*quota // those in use
}

func newPublisher(s *session, c *conn) (*publisher, error) {
	p := &publisher{
		s:            s,
		conn:         c,
		publishSlots: make(chan struct{}, window-reserve),
		settleSlots:  make(chan struct{}, reserve),
		opening:      newTurn(),
		exchanges:    make(map[string]*scouting),
		fits:         16 << 10, // RabbitMQ's own limit is 16 MiB or more
		quotas:       make(map[destination]*quota),

		maxUnanswered: maxUnanswered,
	}
	hear := p.hear
	c.notes.hear.Store(&hear)
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

// unlock unlocks mu, reports the outcomes in ended, and closes the channels in leaving. It closes them on goroutines of
// the session, because closing waits for the broker.
func (p *publisher) unlock() {
	leaving, ended := p.leaving, p.ended
	p.leaving, p.ended, p.spare = nil, p.spare, nil
	p.mu.Unlock()
	if len(ended) > 0 {
		p.report(ended)
		clear(ended)
		p.mu.Lock()
		p.spare = ended[:0]
		p.mu.Unlock()
	}
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
	c, err := s.publish.newCaller(ctx, s.publish.publishSlots, exactDigits, done)
	if err != nil {
		for i := range msgs {
			done(i, err)
		}
		return
	}
	defer c.release()
	c.send(msgs)
}

// confirm publishes one message in the part of the window kept for settling, and waits for its outcome. If ctx ends
// first, the error is ErrUnconfirmed.
func (p *publisher) confirm(ctx context.Context, m *broker.Message) error {
	outcome := make(chan error, 1)
	c, err := p.newCaller(ctx, p.settleSlots, retryDigits, func(_ int, err error) { outcome <- err })
	if err != nil {
		return err
	}
	c.send([]broker.Message{*m})
	c.release()
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

// send writes one message. An error is its outcome, and nothing was written. A queue that does not answer holds up only
// its own messages, and a socket that takes nothing holds up no caller longer than ctx.
func (p *publisher) send(f *flight, m *broker.Message) error {
	ctx := f.caller.ctx
	if err := p.prepare(f, m); err != nil {
		return err
	}
	if err := p.board(f); err != nil {
		if !errors.Is(err, broker.ErrRejected) {
			err = p.notSent(err)
		}
		return err
	}
	f.caller.open.Add(1)
	if f.size <= roomy {
		p.write(f)
	} else if !p.writeAside(f) {
		return nil
	}
	if f.port == &p.ports[scoutPort] { // the next message also comes after it in its queue, through another channel
		p.mu.Lock()
		over := f.released()
		p.mu.Unlock()
		_ = p.yield(ctx, over)
	}
	return nil
}

// write writes a flight that has boarded, and gives its port's turn back.
func (p *publisher) write(f *flight) {
	pt := f.port
	err := pt.current.write(f, pt.pub)
	pt.pub = amqp.Publishing{}
	pt.writing.give()
	if err != nil {
		p.mu.Lock()
		p.end(f, err)
		p.unlock()
	}
}

// writeAside writes a large message, for which the socket may have no room. It returns when the message is written, or
// false when ctx has ended. Its goroutine ends with the socket.
func (p *publisher) writeAside(f *flight) bool {
	written := make(chan struct{})
	f.caller.open.Add(1)
	go func() {
		p.write(f)
		close(written)
		f.caller.release()
	}()
	select {
	case <-written:
		return true
	case <-f.caller.ctx.Done():
		return false
	}
}

// board waits until f may be written: for a place in its destination's quota, for a place in the window, and for its
// port's turn, which it still holds when it returns. It holds nothing while it waits for another flight with f's ID and
// destination.
func (p *publisher) board(f *flight) error {
	ctx, slots := f.caller.ctx, f.caller.slots
	to := destination{f.answering(), slots == p.settleSlots}
	for {
		var err error
		if f.quota, err = p.reserve(ctx, to); err != nil {
			return err
		}
		err = enter(ctx, f, slots, p.s.dead)
		var other <-chan struct{}
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
		p.restore(f.quota, false)
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
func (p *publisher) yield(ctx context.Context, over <-chan struct{}) error {
	t := time.NewTimer(scoutPause)
	defer t.Stop()
	select {
	case <-over:
		return nil
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-p.s.dead:
		return errOver
	}
}

// prepare fills in the flight of a message, and declares the levels for the first delayed one. An error is the
// message's outcome.
func (p *publisher) prepare(f *flight, m *broker.Message) (err error) {
	ctx := f.caller.ctx
	f.id, f.exchange, f.key, f.to, f.size = m.ID, m.Exchange, m.RoutingKey, target{m.Exchange, m.RoutingKey}, len(m.Body)
	if err := p.mayEndChannel(m); err != nil {
		return err
	}
	frame := p.conn.Config.FrameSize
	if !m.NotBefore.IsZero() && time.Until(m.NotBefore) > 0 {
		if f.delay, err = p.s.newDelay(m, f.caller.digits); err != nil {
			return err
		}
		if frame > 0 {
			frame = max(1, frame-f.delay.room())
		}
		// An x-death header would make RabbitMQ up to 3.13 drop the message on its way, as a cycle.
		forward := m.Forward()
		m = &forward
	}
	if f.pub, err = encode(m, frame); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return p.notSent(err)
	}
	if f.delay != nil {
		if f.delay.levels, err = p.s.declareLevels(ctx); err != nil {
			return p.unprepared(err)
		}
		p.s.startProbes()
	}
	return nil
}

// mayEndChannel refuses messages over which RabbitMQ would close the channel, beside those that encode refuses.
func (p *publisher) mayEndChannel(m *broker.Message) error {
	if limit := int(p.maxSize.Load()); limit > 0 && len(m.Body) > limit {
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
func (p *publisher) waitForName(f *flight) error {
	ctx := f.caller.ctx
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
