package bolt

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/seed-416683c9/dispatcher"
	"go.etcd.io/bbolt"
)

// Bounds of one commit, which is held in memory as a whole.
const (
	maxChanges     = 1000
	maxCommitBytes = 16 << 20
)

// change is one call that changes the outbox.
type change struct {
	apply func(*table) error // changes nothing if it returns an error; called again if the first commit failed
	size  int                // about how many bytes it adds
	err   error              // the outcome; set before done is closed
	done  chan struct{}
}

// errClosed is the error of calls after Close.
var errClosed = fmt.Errorf("%w: the outbox is closed", dispatcher.ErrNotSent)

// do commits a change and waits for the commit. The error Is ErrNotSent if the change was certainly not made. If that
// is unknown, the error Is none of the publish errors.
func (o *Outbox) do(ctx context.Context, size int, apply func(*table) error) error {
	c := &change{apply: apply, size: size, done: make(chan struct{})}
	o.mu.Lock()
	switch {
	case o.closing:
		o.mu.Unlock()
		return o.named(errClosed)
	case o.broken != nil:
		defer o.mu.Unlock()
		return o.named(fmt.Errorf("%w: %w", dispatcher.ErrNotSent, o.broken))
	}
	o.pending = append(o.pending, c)
	if !o.committing {
		o.committing = true
		go o.commit()
	}
	o.mu.Unlock()
	select {
	case <-c.done:
		return o.named(c.err)
	case <-ctx.Done():
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case <-c.done:
		return o.named(c.err)
	default:
	}
	for i, p := range o.pending {
		if p == c {
			o.pending = append(o.pending[:i:i], o.pending[i+1:]...)
			return o.named(fmt.Errorf("%w: %w", dispatcher.ErrNotSent, ctx.Err()))
		}
	}
	return o.named(fmt.Errorf("the commit has not ended: %w", ctx.Err()))
}

// commit commits pending changes until none are left. Calls that arrive during one commit share the next.
func (o *Outbox) commit() {
	for {
		batch := o.take()
		if batch == nil {
			return
		}
		err, undone := o.write(batch)
		if undone && len(batch) > 1 {
			// Retry one by one: an entry that does not fit on the disk must not keep others from being removed.
			for _, c := range batch {
				err, undone := o.write([]*change{c})
				c.end(err, undone)
			}
			continue
		}
		for _, c := range batch {
			c.end(err, undone)
		}
	}
}

// take returns the changes of the next commit. It returns nil if there are none; commit then ends.
func (o *Outbox) take() []*change {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, size := 0, 0
	for n < len(o.pending) && n < maxChanges && (n == 0 || size+o.pending[n].size <= maxCommitBytes) {
		size += o.pending[n].size
		n++
	}
	if n == 0 {
		o.committing, o.pending = false, nil
		if o.idle != nil {
			close(o.idle)
			o.idle = nil
		}
		return nil
	}
	batch := o.pending[:n:n]
	o.pending = o.pending[n:]
	return batch
}

// end sets the outcome of a change. err is the error of the commit.
func (c *change) end(err error, undone bool) {
	switch {
	case err != nil && undone:
		c.err = fmt.Errorf("%w: %w", dispatcher.ErrNotSent, err)
	case err != nil:
		c.err = fmt.Errorf("the state on the disk is unknown: %w", err)
	}
	close(c.done)
}

// errUnchanged rolls back a commit that would change nothing.
var errUnchanged = errors.New("unchanged")

// write makes one commit. If it fails, undone reports whether certainly nothing was changed.
func (o *Outbox) write(batch []*change) (err error, undone bool) {
	o.mu.Lock()
	broken := o.broken
	o.mu.Unlock()
	if broken != nil {
		return broken, true
	}
	var after []byte
	err = guarded(func() error {
		return o.db.Update(func(tx *bbolt.Tx) error {
			t, err := newTable(tx)
			if err != nil {
				return err
			}
			for _, c := range batch {
				c.err = c.apply(t)
			}
			after, err = t.save()
			return err
		})
	})
	switch {
	case err == nil || errors.Is(err, errUnchanged):
		return nil, false
	case errors.Is(err, errPanicked):
		o.mu.Lock()
		o.broken = err
		o.mu.Unlock()
		return err, false
	case after == nil: // the commit did not start
		return err, true
	}
	// bbolt writes the header page last. If the new state is not visible, the header was not written. If it is visible,
	// the sync failed, and the state of the disk is unknown.
	seen := true
	failed := o.view(context.Background(), func(t *table) error {
		seen = string(t.raw) == string(after)
		return nil
	})
	return err, failed == nil && !seen
}

// errPanicked marks an error made from a panic.
var errPanicked = errors.New("it cannot be read")

// guarded calls f and turns a panic or memory fault into an error. bbolt panics over damaged pages. A page that is
// missing in the file, or that the disk cannot read, causes a memory fault.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %w: %v", ErrDamaged, errPanicked, p)
		}
	}()
	return f()
}
