package bolt

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/seed-416683c9/dispatcher"
)

// queue puts changes into the next commit, like calls that come while another commit is being written.
func queue(o *Outbox, changes ...func(*table) error) (queued []*change) {
	for _, apply := range changes {
		queued = append(queued, &change{apply: apply, done: make(chan struct{})})
	}
	o.pending, o.committing = queued, true
	return queued
}

// A change that cannot be written must not make the other changes of its commit fail.
func TestTheOthersOfAFailedCommitAreMade(t *testing.T) {
	t.Parallel()
	o, err := Open(filepath.Join(t.TempDir(), "outbox.db"), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	full := errors.New("no space left on device")
	add := func(t *table) error { return t.add("k", nil, o.cfg) }
	calls := queue(o, add, func(t *table) error { t.changed, t.err = true, full; return nil }, add)
	o.commit()
	for i, want := range []error{nil, full, nil} {
		<-calls[i].done
		if got := calls[i].err; !errors.Is(got, want) || want != nil && !errors.Is(got, dispatcher.ErrNotSent) {
			t.Errorf("change %d: got %v, want %v", i, got, want)
		}
	}
	if n, err := o.Counts(context.Background()); err != nil || n.Entries != 2 {
		t.Errorf("%+v, %v: a change was made twice or not at all", n, err)
	}
}

// If ctx ends before a commit takes the change, the call leaves nothing behind. If ctx ends afterwards, the outcome is
// unknown.
func TestACallThatEndsBeforeItsCommitIsWithdrawn(t *testing.T) {
	t.Parallel()
	o, err := Open(filepath.Join(t.TempDir(), "outbox.db"), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	ctx, cancel := context.WithCancel(t.Context())
	add := func(t *table) error { return t.add("k", nil, o.cfg) }
	o.mu.Lock()
	o.committing = true // a commit is being written
	o.mu.Unlock()
	cancel()
	err = o.do(ctx, 0, add)
	if !errors.Is(err, dispatcher.ErrNotSent) || !errors.Is(err, context.Canceled) {
		t.Errorf("waiting: got %v", err)
	}
	o.commit() // nothing is left to commit
	entered, leave := make(chan struct{}), make(chan struct{})
	ctx, cancel = context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		result <- o.do(ctx, 0, func(t *table) error { close(entered); <-leave; return add(t) })
	}()
	<-entered
	cancel()
	if err := <-result; errors.Is(err, dispatcher.ErrNotSent) || !errors.Is(err, context.Canceled) {
		t.Errorf("being written: got %v", err)
	}
	close(leave)
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}
