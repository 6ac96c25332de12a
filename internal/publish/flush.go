package publish

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/link"
)

// close stops accepting entries. From then on, a publish whose key has entries is not sent.
func (c *Courier) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
}

// Flush waits until there are no entries, ctx ends, or the connection is given up. If ctx has no deadline, Flush also
// returns when no entry has left for Timeout. Otherwise a broker would decide when the program ends. For a durable
// outbox it also ends as soon as the broker takes no messages.
func (c *Courier) Flush(ctx context.Context) {
	if c == nil {
		return
	}
	c.close()
	idle := time.NewTimer(c.cfg.Timeout)
	defer idle.Stop()
	late := idle.C
	if _, bounded := ctx.Deadline(); bounded {
		late = nil
	}
	var blocks <-chan time.Time // a broker that begins to block sends no signal here
	if c.durable {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		blocks = t.C
	}
	hurried := false
	for moved := int64(0); ; {
		l, linked := c.cfg.Link.Now()
		c.mu.Lock()
		empty, now, changed := len(c.keys) == 0, c.moved, c.watch()
		c.mu.Unlock()
		switch {
		case empty || l.State == link.GivenUp || l.State == link.Closed:
			return
		case c.durable && !takes(l):
			return
		case l.State == link.Connecting && !hurried:
			// Once, or a broker that accepts and drops would be dialled without pauses.
			c.cfg.Link.Hurry()
			hurried = true
		}
		if now != moved {
			moved = now
			idle.Reset(c.cfg.Timeout)
		}
		select {
		case <-changed:
		case <-linked:
		case <-blocks:
		case <-late:
			return
		case <-ctx.Done():
			return
		}
	}
}

// takes reports whether there is a session whose broker does not block publishers.
func takes(l link.Status) bool {
	if l.Session == nil {
		return false
	}
	_, blocked := l.Session.Blocked()
	return !blocked
}

// Stop ends the courier. It sends nothing more and waits for outcomes until ctx ends. The error describes the entries
// that remain. If Stop is called twice, each call waits.
func (c *Courier) Stop(ctx context.Context) error {
	if c == nil {
		return nil
	}
	c.close()
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	c.stopSending()
	c.idle(ctx)
	c.stopHard()
	late, cancel := context.WithTimeout(context.Background(), link.CloseTimeout)
	defer cancel()
	if !c.idle(late) {
		return errors.New("a call of the outbox has not returned")
	}
	return c.left(late)
}

// idle waits until no carrier and no Add is running. It returns false if ctx ends first.
func (c *Courier) idle(ctx context.Context) bool {
	for {
		c.mu.Lock()
		idle, changed := c.carriers == 0 && c.adding == 0, c.watch()
		c.mu.Unlock()
		if idle {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// left returns nil if no entries are left. It logs those that are left in a durable outbox, and returns nil.
func (c *Courier) left(ctx context.Context) error {
	c.mu.Lock()
	keys := len(c.keys)
	c.mu.Unlock()
	if keys == 0 {
		return nil
	}
	n, err := c.cfg.Outbox.Counts(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("%w: for %d routing keys, and counting them failed: %w", fault.ErrOutboxNotEmpty, keys, err)
	case n.Entries == 0:
		return nil
	case c.durable:
		c.farewell.Do(func() {
			c.cfg.Log.Warn(c.cfg.Noun+"s remain in the outbox until the next start",
				"entries", n.Entries, "dead", n.Dead)
		})
		return nil
	default:
		return fmt.Errorf("%w: %d, and %d dead", fault.ErrOutboxNotEmpty, n.Entries, n.Dead)
	}
}
