package publish

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/link"
)

// Async owns the items that were published without waiting for their outcomes, at most maxOpen, or maxOpenBytes of
// bodies. Its methods may be called by many goroutines at once.
//
// It has two goroutines, each only while there is work: tell reports outcomes, and sendAgain sends what a lost session
// has not sent. So a callback never waits for a connection, and a session never waits for a callback.
type Async[T any] struct {
	sender *Sender
	// conclude receives each outcome, and when the item was taken. It may end its goroutine.
	conclude func(item T, taken time.Time, err error)

	mu      sync.Mutex // guards the fields below, letters and envelopes; never held in a call of the broker or the outbox
	open    int        // items whose conclude has not returned
	closed  bool       // Wait was called
	awaited int        // those of open that came before that
	bytes   int        // of their bodies
	latest  *envelope[T]
	ended   []*letter[T] // for tell
	telling bool
	unsent  []*letter[T] // for sendAgain
	sending bool
	changed chan struct{} // closed when an item leaves; nil while nobody waits
}

// letter is one item on its way.
type letter[T any] struct {
	item   T
	taken  time.Time
	msg    [1]broker.Message
	in     *envelope[T]
	at     int            // index in the envelope
	tried  broker.Session // the last that it was given to; nil = none
	tries  int
	held   bool // the last session has it: Publish has returned, and there is no answer
	queued bool // in unsent
	waits  bool // it is one of awaited
	over   bool // it has its outcome
	err    error
}

// envelope owns the context of letters that came within a moment, from callers with the same context. A context for
// each letter would cost as much as encoding it.
type envelope[T any] struct {
	context.Context // the callers' with Timeout
	caller          context.Context
	began           time.Time
	letters         []*letter[T] // without an outcome
	cancel          func()
	forget          func() bool // stops the call of late
}

// NewAsync returns an Async without items.
func NewAsync[T any](s *Sender, conclude func(item T, taken time.Time, err error)) *Async[T] {
	return &Async[T]{sender: s, conclude: conclude}
}

// Send publishes one item. It returns when the message is written or has its outcome, which it then has reported. It
// waits while too many items are open, while the session's window is full and, without an outbox, while there is no
// session.
func (a *Async[T]) Send(ctx context.Context, item T, m broker.Message) {
	p := &letter[T]{item: item, taken: time.Now()}
	p.msg[0] = m
	err := a.enter(ctx, p)
	if over := err != nil; !over {
		if err, over = a.send(p); !over {
			return
		}
	}
	defer a.leave(p)
	a.conclude(item, p.taken, err)
}

// enter waits for room and adds p. An error is the outcome.
func (a *Async[T]) enter(ctx context.Context, p *letter[T]) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seal(ctx, p)
	for p.in.Err() == nil && a.open > 0 && (a.open >= maxOpen || a.bytes+len(p.msg[0].Body) > maxOpenBytes) {
		changed := a.watch()
		a.mu.Unlock()
		select {
		case <-changed:
		case <-p.in.Done():
		}
		a.mu.Lock()
	}
	a.open++ // even if it is over, since leave follows
	if p.waits = !a.closed; p.waits {
		a.awaited++
	}
	a.bytes += len(p.msg[0].Body)
	if p.in.Err() != nil {
		return fault.EndedBefore(broker.ErrNotSent, p.in)
	}
	return nil
}

// seal puts p into an envelope, whose deadline is at most a hundredth of Timeout early. The caller holds mu.
func (a *Async[T]) seal(ctx context.Context, p *letter[T]) {
	cfg := &a.sender.cfg
	e := a.latest
	if e == nil || e.caller.Done() != ctx.Done() || p.taken.Sub(e.began) > cfg.Timeout/100 || e.Err() != nil {
		e = &envelope[T]{caller: ctx, began: p.taken}
		e.Context, e.cancel = cfg.Bound(ctx)
		e.forget = context.AfterFunc(e, func() { a.late(e) })
		a.latest = e
	}
	p.in, p.at = e, len(e.letters)
	e.letters = append(e.letters, p)
}

// unseal takes p, which has its outcome, out of its envelope. The caller holds mu.
func (a *Async[T]) unseal(p *letter[T]) {
	p.over, p.held = true, false
	e := p.in
	last := len(e.letters) - 1
	e.letters[p.at] = e.letters[last]
	e.letters[p.at].at = p.at
	e.letters[last] = nil
	if e.letters = e.letters[:last]; last > 0 {
		return
	}
	e.forget()
	e.cancel()
	if a.latest == e {
		a.latest = nil
	}
}

// late ends the letters of an envelope whose context has ended. Answers that come later are dropped.
func (a *Async[T]) late(e *envelope[T]) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := len(e.letters) - 1; i >= 0; i-- {
		switch p := e.letters[i]; {
		case p.held:
			a.end(p, fault.EndedBefore(broker.ErrUnconfirmed, e))
		case p.queued && (a.sender.courier == nil || e.caller.Err() != nil): // else it goes to the outbox
			a.end(p, fault.EndedBefore(broker.ErrNotSent, e))
		}
	}
}

// send gives p to a session, or keeps it in the outbox. If over is true, err is the outcome.
func (a *Async[T]) send(p *letter[T]) (err error, over bool) {
	var session broker.Session
	if c := a.sender.courier; c == nil {
		if session, err = a.sender.cfg.Link.Await(p.in, p.tried); err != nil {
			return err, true
		}
	} else {
		session, err = a.sender.willing()
		b := Batch{Errs: make([]error, 1), index: []int{0}, msgs: p.msg[:]}
		if kept := c.divert(&b, err != nil || p.tried != nil); len(kept.msgs) > 0 {
			// All that wait here share the bound: a fresh one for each would add up to hours.
			ctx, cancel := context.WithDeadline(p.in.caller, p.taken.Add(a.sender.cfg.Timeout+link.CloseTimeout))
			defer cancel()
			c.keep(ctx, kept)
			return kept.Errs[0], true
		}
	}
	a.mu.Lock()
	p.tried = session
	p.tries++
	try := p.tries
	a.mu.Unlock()
	session.Publish(p.in, p.msg[:], func(_ int, err error) { a.answer(p, try, err) })
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case p.over || p.tries != try:
	case p.in.Err() != nil: // late has not seen it
		a.end(p, fault.EndedBefore(broker.ErrUnconfirmed, p.in))
	default:
		p.held = true
	}
	return nil, false
}

// answer is called by the session. It ignores a second call, which package broker forbids, and a call after late.
func (a *Async[T]) answer(p *letter[T], try int, err error) {
	err = a.sender.read(err)
	again := errors.Is(err, fault.ErrDisconnected) && p.in.Err() == nil
	if a.sender.courier != nil {
		again = errors.Is(err, broker.ErrNotSent) && p.in.caller.Err() == nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.over || p.tries != try {
		return
	}
	if !again || a.sender.courier == nil && p.in.Err() != nil { // late may have run meanwhile
		a.end(p, err)
		return
	}
	p.held, p.queued = false, true
	p.tries++
	a.unsent = append(a.unsent, p)
	if !a.sending {
		a.sending = true
		go a.sendAgain()
	}
}

// end records an outcome for tell. The caller holds mu.
func (a *Async[T]) end(p *letter[T], err error) {
	a.unseal(p)
	p.err = err
	a.ended = append(a.ended, p)
	if !a.telling {
		a.telling = true
		go a.tell()
	}
}

// sendAgain sends what a session has certainly not sent, through the next session or to the outbox.
func (a *Async[T]) sendAgain() {
	for {
		a.mu.Lock()
		if len(a.unsent) == 0 {
			a.sending = false
			a.mu.Unlock()
			return
		}
		p := a.unsent[0]
		a.unsent[0], a.unsent = nil, a.unsent[1:]
		p.queued = false
		ended := p.over
		a.mu.Unlock()
		if ended {
			continue
		}
		if err, over := a.send(p); over {
			a.mu.Lock()
			a.end(p, err)
			a.mu.Unlock()
		}
	}
}

// tell reports outcomes. If conclude ends the goroutine, another one goes on.
func (a *Async[T]) tell() {
	finished := false
	defer func() {
		if !finished {
			go a.tell()
		}
	}()
	for {
		a.mu.Lock()
		if len(a.ended) == 0 {
			a.telling, finished = false, true
			a.mu.Unlock()
			return
		}
		p := a.ended[0]
		a.ended[0], a.ended = nil, a.ended[1:]
		a.mu.Unlock()
		func() {
			defer a.leave(p)
			a.conclude(p.item, p.taken, p.err)
		}()
	}
}

// leave ends an item whose outcome was reported.
func (a *Async[T]) leave(p *letter[T]) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !p.over {
		a.unseal(p)
	}
	a.open--
	if p.waits {
		a.awaited--
	}
	a.bytes -= len(p.msg[0].Body)
	if a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}

// watch returns a channel that is closed when an item leaves. The caller holds mu.
func (a *Async[T]) watch() <-chan struct{} {
	if a.changed == nil {
		a.changed = make(chan struct{})
	}
	return a.changed
}

// Wait waits until no item is open that came before the first call of Wait, or until ctx ends. Later ones are refused,
// but a program that goes on would keep Wait for ever.
func (a *Async[T]) Wait(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for a.awaited > 0 && ctx.Err() == nil {
		changed := a.watch()
		a.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		a.mu.Lock()
	}
}
