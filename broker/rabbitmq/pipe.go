package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// pipe is one publish channel, with the messages that were written to it and have no answer yet. It ends when RabbitMQ
// refuses a message by closing the channel, or when it was replaced and all its messages are answered. Its port
// continues with the next pipe.
type pipe struct {
	port   *port
	ch     *amqp.Channel
	id     uint16 // of the channel
	closes chan *amqp.Error
	opened time.Time
	mended chan struct{} // closed when its port has handled its end

	// What follows is guarded by publisher.mu.

	flights ring             // those without an answer
	byName  map[name]*flight // the same
	heard   time.Time        // when the last answer came
	orphans int              // flights that nobody waits for
	stale   bool             // was nacked; is replaced as soon as that is allowed
	retired bool             // was replaced; nothing more is written to it
	closing bool
	ended   bool
	// returns receives the messages that could not be routed. It has room for all that may be unanswered here, so the
	// client never waits for room (it would drop the return after 5 s). It is read under mu, so a reader also finds the
	// flight.
	returns chan amqp.Return
}

// openPipe opens a channel. It blocks until the broker answers or the socket ends.
func (pt *port) openPipe() (*pipe, error) {
	ch, id, err := pt.p.openChannel()
	if err != nil {
		return nil, fmt.Errorf("open publish channel: %w", refused(operation{}, err))
	}
	pp := &pipe{
		port: pt, ch: ch, id: id, opened: time.Now(), mended: make(chan struct{}), byName: make(map[name]*flight),
		closes:  ch.NotifyClose(make(chan *amqp.Error, 1)),
		returns: ch.NotifyReturn(make(chan amqp.Return, window+firstQuota)),
	}
	if err := ch.Confirm(false); err != nil {
		_ = ch.Close()
		return nil, fmt.Errorf("enable publisher confirms: %w", refused(operation{}, err))
	}
	return pp, nil
}

// openChannel opens a channel of the publish connection and returns its number, which the client hides.
func (p *publisher) openChannel() (ch *amqp.Channel, id uint16, err error) {
	if err := p.opening.take(context.Background(), p.s.dead); err != nil {
		return nil, 0, err
	}
	defer p.opening.give()
	if ch, err = p.conn.Channel(); err != nil {
		return nil, 0, err
	}
	return ch, uint16(p.conn.notes.opened.Load()), nil
}

// pipeOf returns the pipe that uses a channel number; nil = none. The client gives the number of a channel that has
// ended to another one, perhaps before the end is handled. By then the answers for the first were passed on. The
// caller holds mu.
func (p *publisher) pipeOf(channel uint16) *pipe {
	for _, pp := range slices.Backward(p.pipes) {
		if pp.id == channel {
			return pp
		}
	}
	return nil
}

// watch calls the port's mend when the channel ends. The session handles the end of the connection.
func (pp *pipe) watch() {
	if e := <-pp.closes; !pp.port.p.conn.IsClosed() {
		pp.port.mend(pp, e)
	}
}

// silent reports whether answers are due and none comes. If the first message of a channel goes to a quorum queue that
// does not answer, that message holds up all others for 5 s or more (measured). The caller holds mu.
func (pp *pipe) silent(now time.Time) bool {
	if now.Sub(pp.heard) <= renewPause {
		return false
	}
	oldest := pp.flights.oldest()
	return oldest != nil && now.Sub(oldest.since) > renewPause
}

// over reports whether nothing can be written any more. The caller holds mu.
func (pp *pipe) over() bool { return pp.ended || pp.ch.IsClosed() }

// put adds a flight that is aimed and about to be written. The caller holds the port's turn and mu.
func (pp *pipe) put(f *flight, now time.Time) {
	pp.flights.put(f)
	f.pipe, f.written, f.since, f.confirmation = pp, true, now, nil
	pp.byName[f.name()] = f
	p := pp.port.p
	p.s.silence.wrote()
	if f.caller.gone {
		p.orphan(f)
	}
}

// remove removes a flight, for good or until it is written again. The caller holds mu.
func (pp *pipe) remove(f *flight) {
	pp.flights.remove(f)
	f.pipe = nil
	delete(pp.byName, f.name())
	pp.port.p.s.silence.over()
	if f.orphan {
		pp.orphans--
	}
	pp.tidy()
}

// write hands a message to the client, and the client to the queue of the socket. The caller holds the port's turn. An
// error is the flight's outcome.
func (pp *pipe) write(f *flight, pub amqp.Publishing) error {
	p := pp.port.p
	if p.conn.socket.dead.Load() {
		<-p.s.dead // the killer or the watcher is about to say why
		return p.notSent(errOver)
	}
	f.start = p.conn.out.queued.Load()
	confirmation, err := pp.ch.PublishWithDeferredConfirm(f.exchange, f.key, true, false, pub)
	switch {
	case err == nil:
		f.confirmation = confirmation
		return nil
	case errors.Is(err, amqp.ErrClosed) && !p.conn.IsClosed():
		// The client has read that RabbitMQ closes the channel, and has written nothing: see mend.
		p.mu.Lock()
		defer p.mu.Unlock()
		f.written = false
		return nil
	case errors.Is(err, amqp.ErrClosed): // seen before the last frame: the broker has no whole message
		<-p.s.dead
		return p.notSent(errOver)
	}
	p.s.fail(fmt.Errorf("%w: publish connection: %s", broker.ErrSessionLost, refused(operation{}, err)))
	return fmt.Errorf("%w: the connection was lost while the message was being written: %w",
		broker.ErrUnconfirmed, p.s.Err())
}

// readReturns marks the flights of all returned messages. It never blocks. The caller holds mu.
func (pp *pipe) readReturns() {
	for {
		select {
		case r, ok := <-pp.returns:
			if !ok {
				return
			}
			if f := pp.byName[name{r.MessageId, target{r.Exchange, r.RoutingKey}}]; f != nil {
				f.returned = fmt.Sprintf("%d %s", r.ReplyCode, r.ReplyText)
			}
		default:
			return
		}
	}
}

// tidy closes a retired pipe if all its messages are answered, or if it has only orphans and there are too many. The
// caller holds mu, and calls unlock.
func (pp *pipe) tidy() {
	if !pp.retired || pp.closing || pp.ended {
		return
	}
	owes := pp.flights.n
	if owes == 0 || pp.orphans == owes && pp.port.p.orphans > pp.port.p.maxUnanswered {
		pp.close()
	}
}

// close removes a retired pipe from its port. The caller holds mu, and calls unlock.
func (pp *pipe) close() {
	pp.closing = true
	pp.port.forget(pp)
	pp.port.p.leaving = append(pp.port.p.leaving, pp)
}
