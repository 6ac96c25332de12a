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

// lane is one AMQP channel with the deliveries that came from it: those of a consumer, or of one TryGet. A delivery tag
// is a number of its channel, so a delivery is settled through its lane and nowhere else. When the lane is over, its
// deliveries can no longer be settled (fencing).
type lane struct {
	s        *session
	ch       *amqp.Channel
	queue    string
	consumer *consumer // nil for TryGet
	closes   chan *amqp.Error
	cancels  chan string // the broker ended a subscription

	calling turn          // one call on the channel at a time: an answer does not name its question
	writing turn          // to write settlements, or to keep them back
	wake    chan struct{} // run has something to do
	lost    chan struct{} // closed when gone is set
	flushed chan struct{} // closed when run writes no more settlements
	over    chan struct{} // closed when run has ended

	mu      sync.Mutex // guards what follows, and the subscriptions
	pending []settlement
	urgent  bool   // one of pending must not wait
	written ledger // used only by run
	open    int    // handed out and not settled; a settlement may wait in pending
	retired bool   // no more deliveries come: the lane ends with the last settlement
	gone    error  // why nothing can be settled any more
}

// settlement is an ack or release that run has to write. There are never more of them than deliveries handed out.
type settlement struct {
	tag     uint64
	release bool
	from    *subscription
	written chan struct{} // closed when it was written; nil = nobody waits for that
}

// openLane opens a channel on the consuming connection, for the given number of subscriptions. The caller starts run,
// or closes the channel.
func (s *session) openLane(queue string, subscriptions int) (*lane, error) {
	ch, err := s.consume.Channel()
	if err != nil {
		return nil, err
	}
	return &lane{
		s:       s,
		ch:      ch,
		queue:   queue,
		closes:  ch.NotifyClose(make(chan *amqp.Error, 1)),
		cancels: ch.NotifyCancel(make(chan string, subscriptions)), // the client stops reading while there is no room
		calling: newTurn(),
		writing: newTurn(),
		wake:    make(chan struct{}, 1),
		lost:    make(chan struct{}),
		flushed: make(chan struct{}),
		over:    make(chan struct{}),
	}, nil
}

// start registers the lane with the session and runs it. The caller runs on a goroutine of the session.
func (l *lane) start() {
	s := l.s
	s.goroutines.add()
	s.mu.Lock()
	reason := s.err
	s.lanes[l] = struct{}{}
	s.mu.Unlock()
	if reason != nil { // it died while the lane was opened
		l.lose(reason)
	}
	go l.run()
}

// run writes settlements until the lane is over.
func (l *lane) run() {
	defer l.s.goroutines.done()
	defer close(l.over)
	l.serve()
	l.flush()
	close(l.flushed)
	defer l.forget() // afterwards, for settled
	select {
	case <-l.s.dead: // the channel ends with its connection
	default:
		if l.calling.take(context.Background(), l.s.dead) == nil {
			_ = l.ch.Close() // gives back what is not settled; nothing if the broker has closed it
			l.calling.give()
		}
	}
	if l.consumer != nil {
		l.mu.Lock()
		reason := l.gone
		l.mu.Unlock()
		l.consumer.finish(reason)
		l.consumer.end()
	}
}

func (l *lane) forget() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	delete(l.s.lanes, l)
	l.s.channels.give(l.queue, l.consumer != nil)
}

// settled waits until the broker has taken the settlements of lanes that have nothing left to settle. Such lanes close
// their channels, and the broker confirms a close after everything that came before it.
func (s *session) settled(ctx context.Context, queue string) error {
	s.mu.Lock()
	lanes := s.openLanes()
	s.mu.Unlock()
	for _, l := range lanes {
		if l.queue != queue || l.consumer != nil || !l.spent() {
			continue
		}
		select {
		case <-l.over:
		case <-s.dead:
			return s.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

const (
	// lingerTime is how long an ack may wait for others. Together with lingerMost it bounds what this adds to the tasks
	// that run again after a lost connection.
	lingerTime = 2 * time.Millisecond
	// lingerMost is how many acks may wait.
	lingerMost = 100
)

// lingers reports whether the pending acks may wait for others, since one frame can ack many: RabbitMQ drains a queue
// half again as fast then. That is so only while deliveries are at hand, or the broker may send many more. Otherwise the
// receiver would wait for the broker, and the broker for the acks.
func (l *lane) lingers() bool {
	c := l.consumer
	if c == nil || c.ackEach {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	unsettled := l.open + len(l.pending) // as the broker knows it
	return !l.urgent && !l.retired && 0 < len(l.pending) && len(l.pending) < lingerMost &&
		(len(c.deliveries) > 0 || unsettled < c.limit-2*lingerMost)
}

func (l *lane) serve() {
	timer := time.NewTimer(lingerTime)
	timer.Stop()
	lingering := false
	for {
		select {
		case <-l.lost:
			return
		case e := <-l.closes:
			l.broken(e)
			return
		case _, cancelled := <-l.cancels:
			if cancelled {
				l.lose(l.s.whyCancelled(l.queue))
			} else { // the client closes it with the channel
				l.broken(<-l.closes)
			}
			return
		case <-l.wake:
			if l.lingers() {
				if !lingering {
					lingering = true
					timer.Reset(lingerTime)
				}
				continue
			}
			timer.Stop()
		case <-timer.C:
		}
		lingering = false
		if l.consumer != nil {
			l.consumer.replace()
		}
		l.flush()
		if l.spent() {
			return
		}
		if l.consumer != nil {
			l.consumer.fill()
		}
	}
}

// broken ends the lane after its channel has ended.
func (l *lane) broken(e *amqp.Error) {
	if l.s.consume.IsClosed() || e == nil {
		// The whole connection has ended. The session also ends the lanes, but only after it has closed dead. The
		// reason must be here first, or the consumer would end without one.
		<-l.s.dead
		l.lose(l.s.Err())
		return
	}
	l.lose(fmt.Errorf("%w: %s", broker.ErrConsumerLost, reply(e)))
}

// whyTimeout bounds the check whether a queue still exists.
const whyTimeout = 5 * time.Second

// whyCancelled finds out why the broker ended a subscription, since the broker does not say: the queue was deleted, or
// is not available now.
func (s *session) whyCancelled(queue string) error {
	ctx, cancel := context.WithTimeout(context.Background(), whyTimeout)
	defer cancel()
	_, err := s.Inspect(ctx, queue)
	switch {
	case errors.Is(err, broker.ErrQueueGone), errors.Is(err, broker.ErrSessionLost):
		return err
	case err != nil:
		return fmt.Errorf("%w: the broker ended the subscription: %w", broker.ErrConsumerLost, err)
	}
	return fmt.Errorf("%w: the broker ended the subscription", broker.ErrConsumerLost)
}

// lose ends the lane. Its deliveries can no longer be settled.
func (l *lane) lose(reason error) {
	l.mu.Lock()
	first := l.gone == nil
	if first {
		l.gone = reason
		close(l.lost)
	}
	l.mu.Unlock()
	if first && l.s.Err() == nil && !l.s.consume.IsClosed() {
		l.s.delays.memory.doubt(l.queue) // it may have been deleted
	}
}

// retire ends the lane once everything is settled.
func (l *lane) retire() {
	l.mu.Lock()
	l.retired = true
	l.mu.Unlock()
	l.poke()
}

func (l *lane) spent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.retired && l.open == 0
}

// settle queues a settlement for run to write. The caller holds mu, and then calls poke.
func (l *lane) settle(x settlement) {
	l.pending = append(l.pending, x)
	l.urgent = l.urgent || x.release || x.written != nil
	l.open--
}

func (l *lane) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// flush writes the pending settlements. It blocks on the socket, no longer than the socket's deadline.
func (l *lane) flush() {
	if l.writing.take(context.Background(), l.lost) == nil {
		defer l.writing.give()
	} // else whoever keeps them back may wait for this channel to end
	for {
		l.mu.Lock()
		batch := l.pending
		l.pending, l.urgent = nil, false
		l.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		// An error means that the channel or connection is over. The message comes again, and Ack promised no more.
		var acks, releases []uint64
		for _, x := range batch {
			if x.release {
				releases = append(releases, x.tag)
			} else {
				acks = append(acks, x.tag)
			}
		}
		upTo, singles := l.written.settle(releases)
		if upTo > 0 {
			_ = l.ch.Nack(upTo, true, true)
		}
		for _, tag := range singles {
			_ = l.ch.Nack(tag, false, true)
		}
		upTo, singles = l.written.settle(acks)
		if upTo > 0 {
			_ = l.ch.Ack(upTo, true)
		}
		for _, tag := range singles {
			_ = l.ch.Ack(tag, false)
		}
		l.mu.Lock()
		for _, x := range batch {
			if x.from != nil {
				x.from.open--
			}
			if x.written != nil {
				close(x.written)
			}
		}
		l.mu.Unlock()
	}
}

// handOut makes a delivery of this lane.
func (l *lane) handOut(a *amqp.Delivery, from *subscription) broker.Delivery {
	l.mu.Lock()
	l.open++
	if from != nil {
		from.open++
	}
	l.mu.Unlock()
	m := decode(a)
	l.s.noteUnreadable(l.queue, &m)
	return broker.Delivery{
		Message:     m,
		Queue:       l.queue,
		Redelivered: a.Redelivered,
		Settler:     &delivery{lane: l, from: from, tag: a.DeliveryTag},
	}
}
