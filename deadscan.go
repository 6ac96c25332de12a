package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/seed-416683c9/dispatcher/broker"
)

const (
	// maxChunk is how many letters are taken at once, at most. Their bodies are in memory together. It is what a quorum queue of
	// RabbitMQ can bear (3.10.8, measured): of more than 32 it forgets acks that come one by one when their channel, which each
	// chunk has for itself, is closed soon after, and gives back the others in any order.
	maxChunk = 30
	// minChunk is taken while nobody knows how large the letters are.
	minChunk = 4
	// chunkBytes is what a chunk should have at most.
	chunkBytes = 2 << 20
	// maxHeld and maxHeldBytes bound what a scan passes over, and with it the channels in use on RabbitMQ, which has 2,047 a
	// connection. Only the right to settle it is kept here, but the broker has it all in hand meanwhile.
	maxHeld      = 10_000
	manyHeld     = 1_000 // more than fit on a page
	maxHeldBytes = 128 << 20
)

// deadScan is one walk over dead letters, from the oldest. What was looked at and stays is held until the end: given back
// before, it would be the next one to come.
type deadScan struct {
	session broker.Session
	source  string
	chunk   int // size of the next one

	counted bool
	left    int // letters to look at yet; those that come later are not for this scan, which would remove them and might never end

	held      [][]broker.Settler // by chunk
	heldCount int
	heldBytes int
}

// begin waits for a session.
func (d *DeadLetters) begin(ctx context.Context) (*deadScan, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	waiting, cancel := d.server.cfg.bound(ctx)
	defer cancel()
	session, err := d.server.sup.await(waiting, nil)
	if err != nil {
		return nil, err
	}
	return &deadScan{session: session, source: d.source(), chunk: minChunk}, ctx.Err()
}

// next takes some letters, at most so many; none = the scan is at its end. The caller settles or holds each.
func (s *deadScan) next(ctx context.Context, most int) ([]broker.Delivery, error) {
	n := min(s.chunk, most)
	if s.counted {
		n = min(n, s.left)
	}
	if n <= 0 {
		return nil, nil
	}
	s.held = append(s.held, nil)
	found, err := s.session.TryGet(ctx, s.source, n)
	if errors.Is(err, broker.ErrQueueGone) && s.source == broker.Undeliverable {
		return nil, nil // it is made when the first one comes
	}
	switch {
	case err != nil:
	case len(found) < n && ctx.Err() == nil:
		// No more were ready: the queue is at its end, and what comes from now on is new.
		s.counted, s.left = true, len(found)
	case !s.counted:
		// After the first ones were taken: RabbitMQ answers a count before it has done what it was told earlier, a get after it.
		var info broker.QueueInfo
		info, err = s.session.Inspect(ctx, s.source)
		s.counted, s.left = true, info.Ready+len(found)
	}
	if err != nil {
		_ = s.hold(found...)
		return nil, err
	}
	s.left -= len(found)
	size := 0
	for i := range found {
		size += weight(&found[i])
	}
	switch {
	case size > chunkBytes:
		s.chunk = max(s.chunk/2, 1)
	case size < chunkBytes/4:
		s.chunk = min(s.chunk*4, maxChunk)
	}
	return found, nil
}

// hold keeps letters of the latest chunk from coming again in this scan. They are held also when it returns an error: that
// there are too many.
func (s *deadScan) hold(letters ...broker.Delivery) error {
	last := len(s.held) - 1
	for i := range letters {
		s.held[last] = append(s.held[last], letters[i].Settler)
		s.heldBytes += weight(&letters[i])
	}
	if s.heldCount += len(letters); s.heldCount > maxHeld || s.heldBytes > maxHeldBytes {
		return fmt.Errorf("passed over %d letters with %d MiB, and no more than %d with %d MiB are held at once: replay or delete some of those before",
			s.heldCount, s.heldBytes>>20, maxHeld, maxHeldBytes>>20)
	}
	return nil
}

// release gives back what is held, so that it is in its old order again. What cannot be given back because its session is dead was given
// back by the broker.
func (s *deadScan) release(ctx context.Context) {
	if s.heldCount > manyHeld {
		// Without the Inspect below all chunks would come at once. ctx may have ended, as it does when there are too many.
		grace, cancel := withGrace(ctx, closeTimeout)
		defer cancel()
		ctx = grace
		if s.session.Capabilities().KeepsPlace && s.source != broker.Undeliverable {
			// A classic queue of RabbitMQ looks for the place of each among those that were returned before and are older: oldest first, 10,000
			// letters kept it busy for 34 s, in which it confirmed nothing and its worker stood still; newest first it takes 2 s, and the worker
			// notices nothing (3.10.8, measured). But the queue may be a quorum queue all the same, by a policy or another program, and have them
			// in the wrong order then: so not for less.
			slices.Reverse(s.held)
		}
	}
	for i, chunk := range s.held {
		for _, d := range chunk {
			_ = d.Release()
		}
		if len(chunk) > 0 && i < len(s.held)-1 && ctx.Err() == nil {
			// A quorum queue has what was given back in the order in which it came, and on RabbitMQ each chunk comes on a
			// channel of its own. So the broker has to have this one before the next.
			_, _ = s.session.Inspect(ctx, s.source)
		}
	}
	s.held = nil
}

// finish ends a scan that has removed so many letters, and makes sure that the broker knows: an Ack that was only handed over
// may be lost with the link.
func (s *deadScan) finish(ctx context.Context, removed int) error {
	s.release(ctx)
	if removed == 0 {
		return nil
	}
	_, err := s.session.Inspect(ctx, s.source)
	return err
}

// weight is about what a letter takes in memory.
func weight(d *broker.Delivery) int {
	n := 512 + len(d.Body)
	for _, v := range d.Headers {
		if text, ok := v.(string); ok {
			n += len(text)
		}
	}
	return n
}
