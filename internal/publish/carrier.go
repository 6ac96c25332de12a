package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/text"
)

// maxCarriers bounds how many routing keys are sent side by side, each with one entry in flight. A carrier that has
// waited Timeout for an answer does not count, because queues that do not answer must not hold up others.
const maxCarriers = 64

// maxOffenses is how often the broker may end a connection or channel over something that was sent while an entry was
// in flight, before the entry is buried. From the second time on, only one such entry, an offender, is in flight at a
// time, so that innocent entries are confirmed. A lost link or a broker that stops does not count: no entry is buried
// because of the network.
const maxOffenses = 5

// carry runs a carrier. It sends one entry of one key, then one of the next key in turn, so that a busy key does not
// hold up the others.
func (c *Courier) carry() {
	for {
		c.mu.Lock()
		if len(c.ready) == 0 || c.stopped || c.carriers-c.stalled > maxCarriers {
			c.carriers--
			c.signal()
			c.mu.Unlock()
			return
		}
		k := c.ready[0]
		c.ready[0], c.ready = nil, c.ready[1:]
		k.more = false // before reading the outbox, which may miss entries added from now on
		c.mu.Unlock()

		moved, empty := c.next(k.name)

		c.mu.Lock()
		k.busy = false
		if !empty {
			k.more = true
		}
		if moved {
			c.moved++
		}
		if !moved && !empty { // sending has ended; carriers would loop otherwise
			c.stopped = true
		}
		c.wake(k) // it hires another carrier, since tell may hold this one up
		c.signal()
		c.mu.Unlock()
		c.tell()
	}
}

// next sends the oldest entry of a key until it is confirmed or refused, or sending ends.
func (c *Courier) next(key string) (moved, empty bool) {
	var e Entry
	found := false
	read := func(ctx context.Context) (err error) {
		e, found, err = c.cfg.Outbox.Oldest(ctx, key)
		return err
	}
	if !c.insist(c.sending, "read an entry", key, read) {
		return false, false
	}
	if !found {
		return false, true
	}
	err, known := c.send(e)
	if !known {
		return false, false
	}
	settled := false
	if err == nil {
		c.cfg.Confirmed()
		// A confirmed entry is never sent again, however long the outbox takes to remove it.
		settled = c.insist(c.hard, "remove an entry", key, func(ctx context.Context) error {
			return c.cfg.Outbox.Remove(ctx, e)
		})
	} else {
		err = c.cfg.Advise(err)
		c.about(e).Error("outbox: "+c.cfg.Noun+" refused and kept as a dead entry", "err", text.OneLine(err.Error()))
		e.Refused, e.RefusedAt = text.OneLine(err.Error()), time.Now()
		settled = c.insist(c.hard, "bury an entry", key, func(ctx context.Context) error {
			return c.cfg.Outbox.Bury(ctx, e)
		})
	}
	c.cfg.Left(e, err, err != nil && settled)
	return settled, false
}

// send sends one entry, through as many sessions as it takes to learn the outcome. known is false if sending ended
// first.
func (c *Courier) send(e Entry) (err error, known bool) {
	var dead broker.Session
	pauses := link.RetryPauses()
	for unconfirmed, offenses := 0, 0; ; {
		done, err := c.alone(offenses > 0)
		if err != nil {
			return err, false
		}
		session, err := c.cfg.Link.Await(c.sending, dead)
		if err != nil {
			done()
			return err, false
		}
		err = c.sendOnce(session, e)
		done()
		// The server declares its own exchange again. It does not know the bindings of another exchange, so an entry
		// for that one is refused.
		gone := errors.Is(err, broker.ErrExchangeGone) && (e.Exchange == "" || e.Exchange == c.cfg.Exchange)
		if gone {
			c.cfg.ExchangeGone()
		}
		// A feature that the broker lacks, such as delays, will be missing the next time too.
		if err == nil || !gone && errors.Is(err, broker.ErrRejected) || errors.Is(err, errors.ErrUnsupported) {
			return err, true
		}
		if !errors.Is(err, broker.ErrNotSent) && !gone {
			unconfirmed++
			if errors.Is(err, broker.ErrProtocol) {
				offenses++
			}
		}
		if offenses >= maxOffenses {
			return fmt.Errorf(
				"given up because the broker ended the connection %d times while the entry was being sent: %w",
				offenses, err), true
		}
		if c.sending.Err() != nil {
			return err, false
		}
		c.about(e).Debug("outbox: sending the "+c.cfg.Noun+" again", "err", text.OneLine(err.Error()))
		lost := session.Err() != nil
		if lost {
			dead = session
		}
		// If two sessions died during one entry, the entry may be the cause. The other entries need time in between.
		if !lost || unconfirmed > 1 {
			if !link.Sleep(c.sending, link.PauseAfter(err, pauses)) {
				return err, false
			}
		}
	}
}

// about returns the logger for events of an entry.
func (c *Courier) about(e Entry) *slog.Logger {
	return c.cfg.Log.With(
		"key", text.Excerpt(e.RoutingKey),
		c.cfg.Noun, text.Excerpt(e.Name),
		"uuid", text.Excerpt(e.UUID))
}

// alone makes an offender wait until no other one is in flight. A broker that ends a link over an entry does so at
// once, so the next offender may go after Timeout. Otherwise one queue that does not answer would hold up all
// offenders.
func (c *Courier) alone(offender bool) (done func(), err error) {
	if !offender {
		return func() {}, nil
	}
	select {
	case c.offenders <- struct{}{}:
	case <-c.sending.Done():
		return nil, broker.ErrUnconfirmed
	}
	leave := sync.OnceFunc(func() { <-c.offenders })
	late := time.AfterFunc(c.cfg.Timeout, leave)
	return func() {
		late.Stop()
		leave()
	}, nil
}

// sendOnce publishes an entry through one session and waits for the outcome as long as the session lives. Sending it
// again sooner would only make a second copy.
func (c *Courier) sendOnce(session broker.Session, e Entry) error {
	outcome := make(chan error, 1)
	session.Publish(c.sending, []broker.Message{e.message(c.cfg.Exchange, c.cfg.ContentType)}, once(outcome))
	late := time.NewTimer(c.cfg.Timeout)
	defer late.Stop()
	for waiting := true; waiting; {
		select {
		case err := <-outcome:
			return err
		case <-late.C:
			c.stall(1)
			defer c.stall(-1)
		case <-session.Done():
			waiting = false
		case <-c.hard.Done():
			waiting = false
		}
	}
	select {
	case err := <-outcome:
		return err
	default:
		return broker.ErrUnconfirmed
	}
}

// stall adds n to the number of carriers that have waited too long for an answer. Others may start in their place.
func (c *Courier) stall(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stalled += n
	c.hire()
}
