package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

const (
	// window is how many messages may be unconfirmed. Beyond about 1,000 RabbitMQ gets no faster.
	window = 1000
	// reserve is how much of the window is kept for settling, so that busy publishers do not hold it up.
	reserve = 64
)

// publisher owns the publishing connection and its one channel.
type publisher struct {
	s       *session
	conn    *conn
	ch      *amqp.Channel
	closes  chan *amqp.Error
	writing turn
	gate    gate

	publishSlots chan struct{} // one taken for every message in flight
	settleSlots  chan struct{}

	mu      sync.Mutex
	flights map[string]*flight // by message ID
	// returns is where the client puts what could not be routed. It holds the whole window, so the client never waits for
	// room (it would drop the return after 5 s), and it is read under mu: whoever reads also finds the flight.
	returns chan amqp.Return
}

// flight is a message between the claim of its ID and its outcome.
type flight struct {
	id       string
	exchange string
	key      string
	delay    *delay // nil = it does not wait
	slots    chan struct{}
	returned string        // the broker's words if it came back; guarded by publisher.mu
	over     chan struct{} // closed when its ID is free
}

func newPublisher(s *session, c *conn) (*publisher, error) {
	ch, err := c.Channel()
	if err != nil {
		return nil, fmt.Errorf("open publish channel: %w", refused(operation{}, err))
	}
	p := &publisher{
		s:            s,
		conn:         c,
		ch:           ch,
		closes:       ch.NotifyClose(make(chan *amqp.Error, 1)),
		writing:      newTurn(),
		publishSlots: make(chan struct{}, window-reserve),
		settleSlots:  make(chan struct{}, reserve),
		flights:      make(map[string]*flight),
		returns:      ch.NotifyReturn(make(chan amqp.Return, window)),
	}
	if err := ch.Confirm(false); err != nil {
		return nil, fmt.Errorf("ask for publisher confirms: %w", refused(operation{}, err))
	}
	return p, nil
}

// watchBlocked follows the broker's notices until the connection ends.
func (p *publisher) watchBlocked() {
	for b := range p.conn.blocked {
		p.conn.socket.blocked.Store(b.Active)
		p.gate.set(b.Active, b.Reason)
	}
}

// watchChannel ends the session with its publish channel: nobody knows what became of the messages in flight.
func (p *publisher) watchChannel() {
	if e := <-p.closes; e != nil && !p.conn.IsClosed() {
		hint := ""
		switch e.Code {
		case amqp.NotFound:
			hint = ": the exchange does not exist"
		case amqp.AccessRefused:
			hint = ": the user needs write permission on the exchange"
		}
		p.s.fail(fmt.Errorf("%w: the broker closed the publish channel: %s%s", broker.ErrSessionLost, reply(e), hint))
	}
}

// Publish implements [broker.Session]. The first message of the session that has to wait also blocks until the levels are
// declared. If that is refused it is ErrRejected.
func (s *session) Publish(ctx context.Context, msgs []broker.Message, done func(i int, err error)) {
	if err := s.begin(&s.publishing); err != nil {
		for i := range msgs {
			done(i, fmt.Errorf("publish message %q: %w: %w", msgs[i].ID, broker.ErrNotSent, err))
		}
		return
	}
	defer s.publishing.done()
	for i := range msgs {
		id := msgs[i].ID // the caller may use msgs for something else before done runs
		s.publish.send(ctx, &msgs[i], s.publish.publishSlots, exactDigits, func(err error) {
			if err != nil {
				err = fmt.Errorf("publish message %q: %w", id, err)
			}
			done(i, err)
		})
	}
}

// confirm publishes one message on the account of settling and waits for its outcome. If ctx ends before it comes, that is
// ErrUnconfirmed.
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

// send writes one message, and calls done once: here if nothing was written, otherwise on a goroutine of its own, one for
// every message in flight. So a queue that does not answer holds up its own messages and nobody else's, and a socket that
// takes nothing holds up no caller longer than ctx. A delay is rounded to so many digits. The caller is counted in
// session.publishing.
func (p *publisher) send(ctx context.Context, m *broker.Message, slots chan struct{}, digits int, done func(error)) {
	f, pub, err := p.prepare(ctx, m, digits)
	if err == nil {
		err = p.claim(ctx, f, slots)
	}
	if err != nil {
		done(err)
		return
	}
	if err := p.board(ctx); err != nil {
		p.land(f)
		done(p.notSent(err))
		return
	}
	written := make(chan struct{})
	p.s.publishing.add()
	go func() {
		defer p.s.publishing.done()
		confirmation, err := p.write(f, &pub)
		p.writing.give()
		close(written)
		if err == nil {
			err = p.outcome(f, confirmation)
		}
		if f.delay != nil && f.delay.held && errors.Is(err, broker.ErrUnroutable) {
			err = p.rewrite(f, &pub, err)
		}
		p.land(f)
		done(err)
	}()
	select {
	case <-written: // the next message comes after it
	case <-ctx.Done():
	}
}

// prepare makes all that is needed to write a message, which may be the levels, if it is the first that has to wait.
func (p *publisher) prepare(ctx context.Context, m *broker.Message, digits int) (f *flight, pub amqp.Publishing, err error) {
	f = &flight{id: m.ID, exchange: m.Exchange, key: m.RoutingKey, over: make(chan struct{})}
	frame := p.conn.Config.FrameSize
	if time.Until(m.NotBefore) > 0 {
		if f.delay, err = p.s.newDelay(m, digits); err != nil {
			return nil, pub, err
		}
		if frame > 0 {
			frame = max(1, frame-f.delay.room())
		}
		// An x-death in it would make RabbitMQ up to 3.13 drop it on its way, as one that goes round in circles.
		forward := m.Forward()
		m = &forward
	}
	if pub, err = encode(m, frame); err != nil {
		return nil, pub, err
	}
	if err := ctx.Err(); err != nil {
		return nil, pub, p.notSent(err)
	}
	if f.delay != nil {
		if f.delay.levels, err = p.s.declareLevels(ctx); err != nil {
			return nil, pub, p.unprepared(err)
		}
	}
	return f, pub, nil
}

// notSent words the end of a wait.
func (p *publisher) notSent(err error) error {
	if errors.Is(err, errOver) {
		err = p.s.Err()
	}
	return fmt.Errorf("%w: %w", broker.ErrNotSent, err)
}

// claim waits until the ID is not in flight, and for a place in the window.
func (p *publisher) claim(ctx context.Context, f *flight, slots chan struct{}) error {
	for {
		p.mu.Lock()
		other := p.flights[f.id]
		if other == nil {
			p.flights[f.id] = f
			p.mu.Unlock()
			break
		}
		p.mu.Unlock()
		select {
		case <-other.over:
		case <-ctx.Done():
			return p.notSent(ctx.Err())
		case <-p.s.dead:
			return p.notSent(errOver)
		}
	}
	select {
	case slots <- struct{}{}:
		f.slots = slots
		return nil
	case <-ctx.Done():
		p.land(f)
		return p.notSent(ctx.Err())
	case <-p.s.dead:
		p.land(f)
		return p.notSent(errOver)
	}
}

// land frees what a flight held.
func (p *publisher) land(f *flight) {
	p.mu.Lock()
	delete(p.flights, f.id)
	p.mu.Unlock()
	close(f.over)
	if f.slots != nil {
		<-f.slots
	}
}

// board waits for the turn to write while the broker does not block. Nothing is written to one that does.
func (p *publisher) board(ctx context.Context) error {
	for {
		if err := p.gate.pass(ctx, p.s.dead); err != nil {
			return err
		}
		if err := p.writing.take(ctx, p.s.dead); err != nil {
			return err
		}
		if p.gate.shut.Load() == nil {
			return nil
		}
		p.writing.give() // it was shut meanwhile
	}
}

// write hands the message to the socket. It blocks as long as the socket does.
func (p *publisher) write(f *flight, pub *amqp.Publishing) (*amqp.DeferredConfirmation, error) {
	if p.conn.socket.dead.Load() {
		<-p.s.dead // whoever killed it, or the watcher, is about to say why
		return nil, p.notSent(errOver)
	}
	if f.delay != nil {
		f.delay.aim(f, pub)
	}
	confirmation, err := p.ch.PublishWithDeferredConfirm(f.exchange, f.key, true, false, *pub)
	switch {
	case err == nil:
		return confirmation, nil
	case errors.Is(err, amqp.ErrClosed): // seen before the last frame: the broker has no whole message
		<-p.s.dead
		return nil, p.notSent(errOver)
	}
	p.s.fail(fmt.Errorf("%w: publish connection: %s", broker.ErrSessionLost, refused(operation{}, err)))
	return nil, fmt.Errorf("%w: the link was lost in the middle of it: %w", broker.ErrUnconfirmed, p.s.Err())
}

// outcome waits for the broker's answer.
func (p *publisher) outcome(f *flight, confirmation *amqp.DeferredConfirmation) error {
	select {
	case <-confirmation.Done():
	case <-p.s.dead:
		select {
		case <-confirmation.Done():
		default:
			return fmt.Errorf("%w: %w", broker.ErrUnconfirmed, p.s.Err())
		}
	}
	if !confirmation.Acked() {
		// The client says the same for a nack and for a channel that ended; it marks the channel before it does so.
		if p.ch.IsClosed() {
			<-p.s.dead
			return fmt.Errorf("%w: %w", broker.ErrUnconfirmed, p.s.Err())
		}
		return fmt.Errorf("refused by its queue, which may be full: %w", broker.ErrRejected)
	}
	// The broker returns what it cannot route before it confirms it, and the client reads in order: by now the return is
	// in the channel, or somebody has read it.
	p.mu.Lock()
	p.readReturns()
	returned := f.returned
	p.mu.Unlock()
	if returned != "" {
		if err := p.s.whyUnroutable(f.exchange, f.key); err != nil {
			return fmt.Errorf("%s: %w: %w", returned, broker.ErrNotSent, err)
		}
		return fmt.Errorf("%s: exchange %q, routing key %q: %w", returned, f.exchange, f.key, broker.ErrUnroutable)
	}
	return nil
}

// readReturns marks the flights of all returned messages. The caller holds mu; nothing here waits.
func (p *publisher) readReturns() {
	for {
		select {
		case r, ok := <-p.returns:
			if !ok {
				return
			}
			if f := p.flights[r.MessageId]; f != nil {
				f.returned = fmt.Sprintf("%d %s", r.ReplyCode, r.ReplyText)
			}
		default:
			return
		}
	}
}
