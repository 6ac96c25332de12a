package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// deathSize is more than RabbitMQ adds to the headers of a message at each level, as x-death.
const deathSize = 320

// delay describes a message that has to wait. It belongs to the flight of the message.
type delay struct {
	due    time.Time
	digits int
	target target
	word   string
	levels *run // the declaration that it relies on
	held   bool // it was written to a level
}

// newDelay checks a message that is not due yet.
func (s *session) newDelay(m *broker.Message, digits int) (*delay, error) {
	d := &delay{due: m.NotBefore, digits: digits, target: target{m.Exchange, m.RoutingKey}}
	if !s.can.Delay {
		return nil, fmt.Errorf("delayed publish: %w: %w", broker.ErrRejected, errors.ErrUnsupported)
	}
	if err := checkDelay(time.Until(d.due)); err != nil {
		return nil, err
	}
	if strings.Contains(m.Exchange, "\x00") {
		return nil, fmt.Errorf("delayed publish to exchange %q: the name has a zero byte: %w",
			m.Exchange, broker.ErrRejected)
	}
	d.word = s.delays.target(m.Exchange, m.RoutingKey).word()
	s.delays.probes.use(exitOf(d.word), d.due)
	return d, nil
}

func checkDelay(d time.Duration) error {
	if d > broker.MaxDelay {
		return fmt.Errorf("due in %v, the maximum is %v: %w", d.Round(time.Second), broker.MaxDelay, broker.ErrRejected)
	}
	return nil
}

// room returns how many bytes of a frame the message's headers must leave free.
func (d *delay) room() int {
	return len(targetHeader) + len(d.target.header()) + 16 + (d.digits+3)*deathSize
}

// aim sets where the message is written. It is called right before the write, so that earlier waiting does not make the
// message late. If the message has become due meanwhile, it goes to its target without a delay.
func (d *delay) aim(f *flight, pub *amqp.Publishing) {
	left := time.Until(d.due)
	if d.held = left > 0; !d.held {
		f.exchange, f.key = d.target.exchange, d.target.key
		delete(pub.Headers, targetHeader)
		return
	}
	n := ticks(left, d.digits)
	f.exchange, f.key = levelName(firstLevel(n)), delayKey(n, d.word, exitOf(d.word))
	if pub.Headers == nil {
		pub.Headers = amqp.Table{}
	}
	pub.Headers[targetHeader] = d.target.header()
}

// mayWriteLevels checks whether the user may publish to the levels, with messages that no queue takes. If not, RabbitMQ
// closes the channel, so the check uses another channel than the messages.
func (p *publisher) mayWriteLevels() error {
	if err := p.gate.pass(context.Background(), p.s.dead); err != nil {
		return p.s.Err()
	}
	_, err := call(context.Background(), p.s, func() (struct{}, error) {
		ch, _, err := p.openChannel()
		if err != nil {
			return struct{}{}, err
		}
		closes := ch.NotifyClose(make(chan *amqp.Error, 1))
		var last *amqp.DeferredConfirmation
		err = ch.Confirm(false)
		for level := exitLevel; level <= highestLevel && err == nil; level++ {
			last, err = ch.PublishWithDeferredConfirm(levelName(level), "", false, false, amqp.Publishing{})
		}
		if err == nil {
			<-last.Done()
		}
		if err != nil || !last.Acked() {
			if e := <-closes; e != nil { // it says more than err
				err = e
			}
			return struct{}{}, err
		}
		_ = ch.Close()
		return struct{}{}, nil
	}, nil)
	return refused(writeExchange, err)
}

// unprepared returns the outcome of a message that was not written because something for its delay could not be
// declared.
func (p *publisher) unprepared(err error) error {
	err = fmt.Errorf("prepare delays: %w", err)
	if errors.Is(err, broker.ErrRejected) {
		return err
	}
	return p.notSent(err)
}
