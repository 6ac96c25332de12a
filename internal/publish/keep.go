package publish

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/link"
)

// divert removes from b the messages that go to the outbox, and returns them: all messages, or those whose key has
// entries. Each key is decided once for the whole batch, so that a batch cannot overtake itself. The caller must pass
// the result to keep.
func (c *Courier) divert(b *Batch, all bool) (kept Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept.Errs = b.Errs
	if !all && len(c.keys) == 0 {
		return kept
	}
	held := func(key string) bool { return all || c.keys[key] != nil }
	diverted := make(map[string]bool)
	rest := 0
	for i, msg := range b.msgs {
		to, known := diverted[msg.RoutingKey]
		if !known {
			to = held(msg.RoutingKey)
			diverted[msg.RoutingKey] = to
		}
		if !to {
			b.msgs[rest], b.index[rest] = msg, b.index[i]
			rest++
			continue
		}
		kept.msgs, kept.index = append(kept.msgs, msg), append(kept.index, b.index[i])
		k := c.keys[msg.RoutingKey]
		if k == nil {
			k = &heldKey{name: msg.RoutingKey}
			c.keys[msg.RoutingKey] = k
		}
		k.adding++
		c.adding++
	}
	b.msgs, b.index = b.msgs[:rest], b.index[:rest]
	return kept
}

// keep adds messages to the outbox in order and records their outcomes.
func (c *Courier) keep(ctx context.Context, kept Batch) {
	if len(kept.msgs) == 0 {
		return
	}
	for i := range kept.msgs {
		err := c.add(ctx, entryOf(&kept.msgs[i]))
		kept.Errs[kept.index[i]] = err
		// The entry may be stored even though Add failed, so a carrier must check.
		in := errors.Is(err, fault.ErrInOutbox)
		c.added(kept.msgs[i].RoutingKey, in, in || errors.Is(err, broker.ErrUnconfirmed))
	}
	c.tell()
}

// add adds one entry to the outbox and returns the outcome of its publish.
func (c *Courier) add(ctx context.Context, e Entry) error {
	if c.over() {
		l, _ := c.cfg.Link.Now()
		return l.Over()
	}
	if ctx.Err() != nil {
		return fault.EndedBefore(broker.ErrNotSent, ctx)
	}
	switch err := c.cfg.Outbox.Add(ctx, e); {
	case err == nil || errors.Is(err, fault.ErrInOutbox):
		return fault.ErrInOutbox
	case errors.Is(err, broker.ErrRejected),
		errors.Is(err, broker.ErrNotSent),
		errors.Is(err, broker.ErrUnconfirmed):
		return fmt.Errorf("outbox: %w", err)
	default:
		return fmt.Errorf("outbox: %w: %w", broker.ErrUnconfirmed, err)
	}
}

// over reports whether no more entries may be kept.
func (c *Courier) over() bool {
	l, _ := c.cfg.Link.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed || l.State == link.Closed || l.State == link.GivenUp
}

// added ends what divert began for one message. in: the outbox has it. look: a carrier must check.
func (c *Courier) added(key string, in, look bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.signal()
	k := c.keys[key]
	k.adding--
	c.adding--
	if look {
		k.more = true
	}
	if in {
		c.holding = true
	}
	c.wake(k)
}
