package dispatcher

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-416683c9/dispatcher/broker"
)

const (
	// maxChunk is how many letters are taken at once, at most. Their bodies are in memory together.
	maxChunk = 256
	// minChunk is taken while nobody knows how large the letters are.
	minChunk = 4
	// chunkBytes is what a chunk should have. Every chunk that is held is a channel on RabbitMQ, and there are 2,047.
	chunkBytes = 2 << 20
	// maxHeld and maxHeldBytes bound what a scan passes over. Only the right to settle it is kept here, but the broker has it
	// all in hand meanwhile.
	maxHeld      = 50_000
	maxHeldBytes = 128 << 20
)

// deadScan is one walk over dead letters, from the oldest. What was looked at and stays is held until the end: given back
// before, it would be the next one to come.
type deadScan struct {
	session broker.Session
	source  string
	left    int // letters to look at yet; those that come meanwhile are not for this scan, or it might never end
	chunk   int

	held      []broker.Settler
	heldBytes int
}

// begin waits for a session and counts the letters.
func (d *DeadLetters) begin(ctx context.Context) (*deadScan, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, d.server.cfg.PublishTimeout)
	defer cancel()
	session, err := d.server.sup.await(waiting, nil)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	info, err := session.Inspect(ctx, d.source())
	if errors.Is(err, broker.ErrQueueGone) && d.undeliverable() {
		err = nil // it is made when the first one comes
	}
	return &deadScan{session: session, source: d.source(), left: info.Ready, chunk: minChunk}, err
}

// next takes some letters, at most so many if each of them is wanted; none = the scan is at its end. The caller settles or
// holds each.
func (s *deadScan) next(ctx context.Context, most int, exactly bool) ([]broker.Delivery, error) {
	n := min(s.chunk, s.left)
	if exactly {
		n = min(n, most)
	}
	if n <= 0 {
		return nil, nil
	}
	found, err := s.session.TryGet(ctx, s.source, n)
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

// hold keeps letters from coming again in this scan. They are held also when it returns an error: that there are too many.
func (s *deadScan) hold(letters ...broker.Delivery) error {
	for i := range letters {
		s.held = append(s.held, letters[i].Settler)
		s.heldBytes += weight(&letters[i])
	}
	if len(s.held) > maxHeld || s.heldBytes > maxHeldBytes {
		return fmt.Errorf("passed over %d letters with %d MiB, and no more than %d with %d MiB are held at once: replay or delete some of those before",
			len(s.held), s.heldBytes>>20, maxHeld, maxHeldBytes>>20)
	}
	return nil
}

// release gives back what is held, oldest first. What cannot be given back because its session is dead was given back by the
// broker.
func (s *deadScan) release() {
	for _, d := range s.held {
		_ = d.Release()
	}
	s.held = nil
}

// finish ends a scan that has removed so many letters, and makes sure that the broker knows: an Ack that was only handed over
// may be lost with the link.
func (s *deadScan) finish(ctx context.Context, removed int) error {
	s.release()
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
