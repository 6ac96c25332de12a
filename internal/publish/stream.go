package publish

import (
	"context"
	"errors"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/link"
)

const (
	// maxOpen is how many items of one stream may be without a result. It is twice what a session takes at once
	// (window in broker/rabbitmq), so that a late answer for the oldest item does not leave the window empty.
	maxOpen = 2000
	// maxOpenBytes is how many bytes their bodies may have together.
	maxOpenBytes = 8 << 20
)

// StreamConfig configures a Stream.
type StreamConfig[T any] struct {
	// Prepare returns the message of an item that was just taken. An error is its outcome.
	Prepare func(T) (broker.Message, error)
	// Conclude receives an outcome, and when the item was taken. It returns the error to yield.
	Conclude func(item T, taken time.Time, err error) error
}

// Stream owns the items of one sequence that were taken and not yet yielded. It sends their messages in order and
// yields the outcomes in the same order. Only one goroutine uses it; it starts none.
type Stream[T any] struct {
	cfg     StreamConfig[T]
	sender  *Sender
	caller  context.Context
	session broker.Session // the last that was written to
	open    []*parcel[T]   // taken and not yielded, oldest first
	bytes   int            // of their bodies
	unsent  []*parcel[T]   // those of open that must be sent, in the same order
	bound   *bound         // of the latest
}

// NewStream returns an empty stream. The caller must close it.
func NewStream[T any](ctx context.Context, s *Sender, cfg StreamConfig[T]) *Stream[T] {
	return &Stream[T]{cfg: cfg, sender: s, caller: ctx}
}

// Close waits for the outcomes of all items and drops them after Conclude.
func (s *Stream[T]) Close() {
	defer s.unbind()
	s.Flush(func(T, error) bool { return true })
}

// boundFor returns the context of an item taken now. Its deadline is at most a hundredth of Timeout early.
func (s *Stream[T]) boundFor(now time.Time) *bound {
	if b := s.bound; b == nil || now.Sub(b.began) > s.sender.cfg.Timeout/100 || b.Err() != nil {
		s.unbind()
		ctx, cancel := s.sender.cfg.Bound(s.caller)
		s.bound = &bound{ctx, cancel, now, 1}
	}
	s.bound.items++
	return s.bound
}

// unbind ends the sharing of the latest context: later items get a new one.
func (s *Stream[T]) unbind() {
	if s.bound != nil {
		s.bound.release()
		s.bound = nil
	}
}

// Take adds an item, and sends its message unless it is refused or, with ended, the caller's context has ended.
func (s *Stream[T]) Take(item T, ended bool) {
	now := time.Now()
	p := &parcel[T]{item: item, began: now, ctx: s.boundFor(now)}
	msg, err := s.cfg.Prepare(item)
	if ended {
		err = fault.EndedBefore(broker.ErrNotSent, s.caller)
	}
	p.msg[0] = msg
	s.open = append(s.open, p)
	s.bytes += len(msg.Body)
	if err != nil {
		p.end(err)
		return
	}
	s.unsent = append(s.unsent, p)
	s.send(false)
}

// Yield yields the oldest items whose outcome is there. It waits for outcomes until another item may be taken. It
// reports false if the consumer wants no more.
func (s *Stream[T]) Yield(to func(T, error) bool) bool { return s.yield(to, maxOpen-1) }

// Flush is Yield that waits for the outcomes of all items.
func (s *Stream[T]) Flush(to func(T, error) bool) bool { return s.yield(to, 0) }

// yield yields the oldest items whose outcome is there. It waits for outcomes while more than most items are open, or
// one is unsent. It reports false if the consumer wants no more.
func (s *Stream[T]) yield(to func(T, error) bool, most int) bool {
	for len(s.open) > 0 {
		p := s.open[0]
		if len(s.open) <= most && s.bytes <= maxOpenBytes && len(s.unsent) == 0 && !p.answered() {
			return true
		}
		if len(s.unsent) > 0 && !p.answered() && !p.soon() {
			s.send(false)
			continue
		}
		if s.look(p); !p.over {
			s.gather()
			s.send(true)
			continue
		}
		s.open[0], s.open = nil, s.open[1:]
		s.bytes -= len(p.msg[0].Body)
		if !to(p.item, s.cfg.Conclude(p.item, p.began, p.err)) {
			return false
		}
	}
	return true
}

// look waits for the outcome of a parcel in flight. If the parcel was certainly not sent and has another try, it is
// unsent afterwards.
func (s *Stream[T]) look(p *parcel[T]) {
	if p.answer == nil {
		return
	}
	err := s.sender.read(p.wait())
	p.answer = nil
	again := errors.Is(err, fault.ErrDisconnected) && p.ctx.Err() == nil
	if s.sender.courier != nil {
		again = errors.Is(err, broker.ErrNotSent) && s.caller.Err() == nil
	}
	if !again {
		p.end(err)
	}
}

// send sends all unsent parcels, or keeps them in the outbox. Without wait it stops as soon as it would have to wait
// for a session.
func (s *Stream[T]) send(wait bool) {
	for len(s.unsent) > 0 {
		p := s.unsent[0]
		if !wait && s.sender.courier == nil {
			// A session knows that it is dead before the supervisor does.
			if session, err := s.sender.willing(); err != nil || session == p.tried {
				return
			}
		}
		session, err := s.sessionFor(p)
		if err == nil && session != s.session {
			// Later parcels must not overtake those that the last session did not send.
			s.session = session
			s.settle()
			continue
		}
		switch {
		case s.keep(p, err != nil):
		case err != nil:
			p.end(err)
		default:
			s.write(session, p)
		}
		if p.over || p.answer != nil {
			s.unsent = s.unsent[1:]
		}
	}
}

// sessionFor returns the session for the next try of a parcel. Without an outbox it waits for one.
func (s *Stream[T]) sessionFor(p *parcel[T]) (broker.Session, error) {
	switch {
	case s.sender.courier == nil:
		return s.sender.cfg.Link.Await(p.ctx, p.tried)
	case p.tried != nil:
		return nil, broker.ErrNotSent
	default:
		return s.sender.willing()
	}
}

// settle waits for everything in flight, then collects the unsent parcels.
func (s *Stream[T]) settle() {
	for _, p := range s.open {
		s.look(p)
	}
	s.gather()
}

// gather collects the unsent parcels, in order.
func (s *Stream[T]) gather() {
	s.unsent = s.unsent[:0:0]
	for _, p := range s.open {
		if !p.over && p.answer == nil {
			s.unsent = append(s.unsent, p)
		}
	}
}

// write sends one parcel. If the session reports at once that it did not send it, the parcel is unsent afterwards.
func (s *Stream[T]) write(session broker.Session, p *parcel[T]) {
	answer := make(chan error, 1)
	p.tried, p.answer = session, answer
	session.Publish(p.ctx, p.msg[:], once(answer))
	if p.answered() {
		s.look(p)
	}
}

// keep puts a parcel into the outbox, if there is one, when must is true or its key has entries there. Older parcels of
// its key that turn out to be unsent go first.
func (s *Stream[T]) keep(p *parcel[T], must bool) bool {
	c := s.sender.courier
	if c == nil {
		return false
	}
	b := Batch{Errs: make([]error, 1), index: []int{0}, msgs: p.msg[:]}
	kept := c.divert(&b, must)
	if len(kept.msgs) == 0 {
		return false
	}
	for _, older := range s.open {
		if older == p {
			break
		}
		if older.msg[0].RoutingKey != p.msg[0].RoutingKey || older.answer == nil {
			continue
		}
		if s.look(older); !older.over {
			s.keep(older, true)
		}
	}
	ctx, cancel := context.WithTimeout(s.caller, link.CloseTimeout)
	defer cancel()
	c.keep(ctx, kept)
	p.end(kept.Errs[0])
	return true
}
