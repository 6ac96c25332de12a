// Package deadletter reads queues of dead letters. It borrows letters from the broker and gives back those that stay.
package deadletter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/link"
)

const (
	// MaxChunk bounds how many letters are taken at once. Their bodies are in memory together. A quorum queue of
	// RabbitMQ handles no more (3.10.8, measured). Of more than 32 letters, it forgets acks that come one by one if
	// their channel is closed soon after, and returns the others in any order. Each chunk has a channel of its own.
	MaxChunk = 30
	// minChunk is the size of a chunk while the size of the letters is unknown.
	minChunk = 4
	// chunkBytes is the memory that a chunk should take at most, in bytes.
	chunkBytes = 2 << 20
	// maxHeld and maxHeldBytes bound the letters that a scan passes over. They thereby bound the channels in use on
	// RabbitMQ, which allows 2,047 per connection. The scan keeps only the right to settle a letter, but the broker
	// holds the whole letter meanwhile.
	maxHeld      = 10_000
	manyHeld     = 1_000 // more than fit on a page
	maxHeldBytes = 128 << 20
)

// Scan is one pass over dead letters, oldest first. It owns the letters that were read and stay, which it holds until
// the end. Returned earlier, they would be the next to come. Only one goroutine uses it.
type Scan struct {
	Session broker.Session
	Source  string // the queue

	chunk int // size of the next chunk

	counted bool
	left    int // letters still to read; with later ones the scan would remove them and might never end

	held      [][]broker.Settler // by chunk
	heldCount int
	heldBytes int
}

// NewScan returns a scan of the letters in the queue source.
func NewScan(session broker.Session, source string) *Scan {
	return &Scan{Session: session, Source: source, chunk: minChunk}
}

// Next takes up to most letters. If it returns none, the scan is at its end. The caller settles or holds each letter.
func (s *Scan) Next(ctx context.Context, most int) ([]broker.Delivery, error) {
	n := min(s.chunk, most)
	if s.counted {
		n = min(n, s.left)
	}
	if n <= 0 {
		return nil, nil
	}
	s.held = append(s.held, nil)
	found, err := s.Session.TryGet(ctx, s.Source, n)
	if errors.Is(err, broker.ErrQueueGone) && s.Source == broker.Undeliverable {
		return nil, nil // declared when the first letter comes
	}
	switch {
	case err != nil:
	case len(found) < n && ctx.Err() == nil:
		// No more were ready: the scan has reached the end of the queue, and letters that come from now on are new.
		s.counted, s.left = true, len(found)
	case !s.counted:
		// Count after the first get. RabbitMQ answers a count before it has carried out earlier requests, but answers a
		// get after them.
		var info broker.QueueInfo
		info, err = s.Session.Inspect(ctx, s.Source)
		s.counted, s.left = true, info.Ready+len(found)
	}
	if err != nil {
		_ = s.Hold(found...)
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
		s.chunk = min(s.chunk*4, MaxChunk)
	}
	return found, nil
}

// Hold keeps letters of the latest chunk from coming again in this scan. It returns an error if too many are held; they
// are held nevertheless.
func (s *Scan) Hold(letters ...broker.Delivery) error {
	last := len(s.held) - 1
	for i := range letters {
		s.held[last] = append(s.held[last], letters[i].Settler)
		s.heldBytes += weight(&letters[i])
	}
	if s.heldCount += len(letters); s.heldCount > maxHeld || s.heldBytes > maxHeldBytes {
		return fmt.Errorf("too many dead letters come first: "+
			"%d with %d MiB, and at most %d with %d MiB can be passed over; replay or delete some of them",
			s.heldCount, s.heldBytes>>20, maxHeld, maxHeldBytes>>20)
	}
	return nil
}

// Release returns the held letters so that they are in their old order again. If their session is dead, the broker has
// returned them already.
func (s *Scan) Release(ctx context.Context) {
	if s.heldCount > manyHeld {
		// Without the Inspect below, all chunks would be returned at once. ctx may have ended.
		grace, cancel := link.WithGrace(ctx, link.CloseTimeout)
		defer cancel()
		ctx = grace
		if s.Session.Capabilities().KeepsPlace && s.Source != broker.Undeliverable {
			// A classic queue of RabbitMQ searches for the place of each letter among the older ones that were returned
			// before. Returned oldest first, 10,000 letters kept it busy for 34 s: it confirmed nothing and its worker
			// stood still. Newest first it takes 2 s, and the worker notices nothing (3.10.8, measured). By
			// default_queue_type or another program, the queue may be a quorum queue nevertheless, and then has the
			// letters in the wrong order. So fewer letters are not reversed.
			slices.Reverse(s.held)
		}
	}
	for i, chunk := range s.held {
		for _, d := range chunk {
			_ = d.Release()
		}
		if len(chunk) > 0 && i < len(s.held)-1 && ctx.Err() == nil {
			// A quorum queue keeps returned letters in the order in which they arrive, and on RabbitMQ each chunk
			// arrives on its own channel. So the broker must have this chunk before the next.
			_, _ = s.Session.Inspect(ctx, s.Source)
		}
	}
	s.held = nil
}

// Finish ends a scan that has removed the given number of letters, and makes sure that the broker knows. An Ack that
// was only handed over may be lost with the link.
func (s *Scan) Finish(ctx context.Context, removed int) error {
	s.Release(ctx)
	if removed == 0 {
		return nil
	}
	_, err := s.Session.Inspect(ctx, s.Source)
	return err
}

// weight returns about how much memory a letter takes.
func weight(d *broker.Delivery) int {
	n := 512 + len(d.Body)
	for _, v := range d.Headers {
		if text, ok := v.(string); ok {
			n += len(text)
		}
	}
	return n
}
