package rabbitmq

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/seed-416683c9/dispatcher/broker"
)

// flightsAtOnce is how many flights of a caller are allocated together.
const flightsAtOnce = 64

// caller is one call that publishes messages. It waits for their outcomes until ctx ends. Until it is over, the session
// waits for it: as one of session.publishing, and once ctx has ended as one of session.goroutines.
type caller struct {
	p      *publisher
	ctx    context.Context
	slots  chan struct{} // the part of the window for its messages
	digits int           // to which a delay is rounded
	done   func(i int, err error)

	open   atomic.Int64 // messages without an outcome, and one for the call itself
	forget func() bool  // stops the wait for the end of ctx; nil = ctx does not end

	// Guarded by publisher.mu.

	gone bool // ctx has ended
	over bool // nothing is open
}

// newCaller counts a call as under way. An error says that the session is over. Otherwise the caller must call release.
func (p *publisher) newCaller(
	ctx context.Context, slots chan struct{}, digits int, done func(i int, err error),
) (*caller, error) {
	if err := p.s.begin(&p.s.publishing); err != nil {
		return nil, fmt.Errorf("%w: %w", broker.ErrNotSent, err)
	}
	c := &caller{p: p, ctx: ctx, slots: slots, digits: digits, done: done}
	c.open.Store(1)
	if ctx.Done() != nil {
		c.forget = context.AfterFunc(ctx, func() { p.abandon(c) })
	}
	return c, nil
}

// send writes messages in order. It reports those that were not written at once, the others when they have their
// outcome.
func (c *caller) send(msgs []broker.Message) {
	var spare []flight
	for i := range msgs {
		if len(spare) == 0 {
			spare = make([]flight, min(len(msgs)-i, flightsAtOnce))
		}
		f := &spare[0]
		spare = spare[1:]
		f.caller, f.i = c, i
		if err := c.p.send(f, &msgs[i]); err != nil {
			c.done(i, err)
		}
	}
}

// release ends what is open because of one message, or because of the call.
func (c *caller) release() {
	if c.open.Add(-1) > 0 {
		return
	}
	p := c.p
	p.mu.Lock()
	c.over = true
	gone := c.gone
	p.mu.Unlock()
	if c.forget != nil {
		c.forget()
	}
	if gone {
		p.s.goroutines.done()
	} else {
		p.s.publishing.done()
	}
}

// abandon makes orphans of the flights of a caller whose ctx has ended. done is still called for them.
func (p *publisher) abandon(c *caller) {
	p.mu.Lock()
	defer p.unlock()
	if c.over {
		return
	}
	c.gone = true
	p.s.goroutines.add() // Close no longer waits for them
	p.s.publishing.done()
	for _, pp := range p.pipes {
		pp.flights.each(pp.flights.last, true, func(f *flight) {
			if f.caller == c {
				p.orphan(f)
			}
		})
	}
	if p.orphans > p.maxUnanswered {
		for i := range p.ports {
			for _, pp := range slices.Clone(p.ports[i].retired) {
				pp.tidy()
			}
		}
	}
}

// orphan frees the place of a flight on a pipe, because nobody waits for it. The caller holds mu.
func (p *publisher) orphan(f *flight) {
	f.orphan = true
	f.pub.Headers, f.pub.Body = nil, nil
	p.leave(f)
	f.release()
	p.orphans++
	f.pipe.orphans++
}
