// Package publish sends messages and gives each exactly one outcome, through the outbox if need be. It knows no tasks.
package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/link"
)

// Config configures a Sender and its Courier. Without an Outbox, the fields after it may be zero.
type Config struct {
	Link    *link.Supervisor
	Log     *slog.Logger
	Timeout time.Duration // of one publish
	// Bound ends a context after Timeout, with a cause that names the user's setting.
	Bound func(context.Context) (context.Context, context.CancelFunc)
	// ExchangeGone is called when the exchange was deleted. It declares everything again and does not block.
	ExchangeGone func()

	Outbox      Outbox // nil = none
	Noun        string // a message, as the log calls it: "task"
	Exchange    string // the server's own; also that of an entry that has none
	ContentType string // of an entry that has none
	// Advise adds to a refusal what the user can do about it.
	Advise func(error) error
	// Confirmed counts an entry that the broker has confirmed. It is called before the entry is removed.
	Confirmed func()
	// Left receives the outcome of an entry after the outbox has removed or buried it, or if Stop ended that.
	// buried: the entry is among the dead ones now.
	Left func(e Entry, err error, buried bool)
}

// Sender sends messages through the live session, or hands them to the courier. It owns nothing that changes and has no
// lock. Its methods may be called by many goroutines at once.
type Sender struct {
	cfg     Config
	courier *Courier // nil without an outbox
}

// NewSender returns a sender. courier is nil without an outbox.
func NewSender(cfg Config, courier *Courier) *Sender { return &Sender{cfg, courier} }

// Batch owns the messages of one publish and their outcomes. Only one goroutine uses it.
type Batch struct {
	Errs  []error          // the outcomes, by the caller's index
	msgs  []broker.Message // those without an outcome, in order
	index []int            // of msgs[i] in Errs

	one struct { // what the slices use, if there is one message
		errs  [1]error
		msgs  [1]broker.Message
		index [1]int
	}
}

// NewBatch returns an empty batch with room for n messages.
func NewBatch(n int) *Batch {
	b := &Batch{}
	if n == 1 {
		b.Errs, b.index, b.msgs = b.one.errs[:], b.one.index[:0], b.one.msgs[:0]
	} else {
		b.Errs, b.index, b.msgs = make([]error, n), make([]int, 0, n), make([]broker.Message, 0, n)
	}
	return b
}

// Add appends a message whose outcome is Errs[i].
func (b *Batch) Add(i int, m broker.Message) { b.index, b.msgs = append(b.index, i), append(b.msgs, m) }

// Send publishes until every message has its outcome. ctx is the caller's with Timeout. With wait it waits for a
// session until ctx ends. With an outbox it never waits for one.
func (s *Sender) Send(caller, ctx context.Context, b *Batch, wait bool) {
	if s.courier != nil {
		s.sendOrKeep(caller, ctx, b)
	} else {
		s.send(ctx, b, wait)
	}
}

// send is Send without an outbox. If the caller waits, messages that were certainly not sent because their session died
// go to the next session. All other outcomes are final.
func (s *Sender) send(ctx context.Context, b *Batch, wait bool) {
	var session broker.Session
	for len(b.msgs) > 0 {
		var err error
		if wait {
			session, err = s.cfg.Link.Await(ctx, session)
		} else {
			session, err = s.cfg.Link.Session()
		}
		if err != nil {
			for _, i := range b.index {
				b.Errs[i] = err
			}
			return
		}
		s.sendOnce(ctx, session, b, func(err error) bool {
			return errors.Is(err, fault.ErrDisconnected) && ctx.Err() == nil
		})
		if !wait {
			return
		}
	}
}

// sendOrKeep is Send with an outbox. It keeps messages that cannot be sent now, or that must not overtake entries of
// the outbox.
func (s *Sender) sendOrKeep(caller, ctx context.Context, b *Batch) {
	// When Timeout has passed at a broker that blocks, there must be time left to keep the messages.
	keeping, cancel := context.WithTimeout(caller, s.cfg.Timeout+link.CloseTimeout)
	defer cancel()
	session, err := s.willing()
	s.courier.keep(keeping, s.courier.divert(b, err != nil))
	if len(b.msgs) == 0 {
		return
	}
	s.sendOnce(ctx, session, b, func(err error) bool {
		return errors.Is(err, broker.ErrNotSent) && caller.Err() == nil
	})
	s.courier.keep(keeping, s.courier.divert(b, true))
}

// willing returns the session if it takes a message at once, or an error that says why there is none.
func (s *Sender) willing() (broker.Session, error) {
	session, err := s.cfg.Link.Session()
	if err == nil {
		if _, blocked := session.Blocked(); blocked {
			err = broker.ErrNotSent
		}
	}
	return session, err
}

// sendOnce publishes through one session and notes the outcomes. It leaves in b the messages for whose outcome again
// reports true.
func (s *Sender) sendOnce(ctx context.Context, session broker.Session, b *Batch, again func(error) bool) {
	r := NewReceipts(len(b.msgs))
	session.Publish(ctx, b.msgs, r.Done)
	rest := 0
	for i, err := range r.Wait(ctx) {
		err = s.read(err)
		b.Errs[b.index[i]] = err
		if again(err) {
			b.msgs[rest], b.index[rest] = b.msgs[i], b.index[i]
			rest++
		}
	}
	b.msgs, b.index = b.msgs[:rest], b.index[:rest]
}

// read translates a session's answer into an outcome.
func (s *Sender) read(err error) error {
	switch {
	case errors.Is(err, broker.ErrNotSent) && errors.Is(err, broker.ErrSessionLost):
		err = fmt.Errorf("%w: %w", fault.ErrDisconnected, err)
	case err != nil &&
		!errors.Is(err, broker.ErrNotSent) &&
		!errors.Is(err, broker.ErrRejected) &&
		!errors.Is(err, broker.ErrUnconfirmed):
		err = fmt.Errorf("%w: %w", broker.ErrUnconfirmed, err) // an answer that does not say proves nothing
	}
	if errors.Is(err, broker.ErrExchangeGone) {
		s.cfg.ExchangeGone()
	}
	return err
}
