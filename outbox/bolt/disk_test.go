//go:build unix

package bolt_test

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/outbox/bolt"
)

func init() { children["hold"], children["limit"] = holdChild, limitChild }

// isClear returns nil if err says that the disk is full and that nothing was changed.
func isClear(err error, path string) error {
	text := err.Error() // bbolt does not wrap all of them
	full := strings.Contains(text, syscall.ENOSPC.Error()) || strings.Contains(text, syscall.EFBIG.Error())
	if !errors.Is(err, dispatcher.ErrNotSent) || !full || !strings.Contains(err.Error(), path) {
		return fmt.Errorf("not a clear error: %w", err)
	}
	return nil
}

// fill adds entries with many goroutines until the disk is full. Then it removes some entries and adds again. After
// each step it checks that the outbox holds exactly the entries that it has accepted. free makes room on the disk
// again.
func fill(o *bolt.Outbox, path string, free func() error) error {
	ctx := context.Background()
	var mu sync.Mutex
	accepted := map[string]bool{}
	var failures []error
	adders := func(round, n int) {
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range n {
					uuid := fmt.Sprintf("%d-%d-%d", round, g, i)
					err := o.Add(ctx, dispatcher.OutboxEntry{RoutingKey: fmt.Sprint("k", g), UUID: uuid, Body: make([]byte, 5000)})
					mu.Lock()
					if err == nil {
						accepted[uuid] = true
					} else {
						failures = append(failures, err)
					}
					mu.Unlock()
					if err != nil {
						return
					}
				}
			})
		}
		wg.Wait()
	}
	clear := func() error {
		if len(failures) == 0 {
			return errors.New("the disk never became full")
		}
		for _, err := range failures {
			if err := isClear(err, path); err != nil {
				return err
			}
		}
		failures = nil
		return nil
	}
	holds := func(o *bolt.Outbox, when string) error {
		n := 0
		for g := range 8 {
			all, err := o.Waiting(ctx, fmt.Sprint("k", g))
			if err != nil {
				return fmt.Errorf("%s: %w", when, err)
			}
			for _, e := range all {
				if !accepted[e.UUID] {
					return fmt.Errorf("%s: %s was refused but is there", when, e.UUID)
				}
				n++
			}
		}
		if n != len(accepted) || n == 0 {
			return fmt.Errorf("%s: %d of %d accepted entries are there", when, n, len(accepted))
		}
		return nil
	}
	adders(1, 1_000_000)
	if err := errors.Join(clear(), holds(o, "full")); err != nil {
		return err
	}
	// Entries can leave a full disk as long as a page is free, even while another caller keeps trying to add one.
	ended, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for ended.Err() == nil {
			if o.Add(ctx, dispatcher.OutboxEntry{RoutingKey: "pressing", Body: make([]byte, 1<<20)}) == nil {
				return
			}
		}
	})
	removed := 0
	var unclear error
	for g := range 8 {
		for range 5 {
			e, found, err := o.Oldest(ctx, fmt.Sprint("k", g))
			if err != nil || !found {
				break
			}
			if err = o.Remove(ctx, e); err != nil {
				unclear = errors.Join(unclear, isClear(err, path))
				break
			}
			delete(accepted, e.UUID)
			removed++
		}
	}
	stop()
	wg.Wait()
	if err := errors.Join(unclear, holds(o, "after some have left")); err != nil {
		return err
	}
	adders(2, 2)
	failures = nil // the disk may be full again
	if err := errors.Join(holds(o, "full again"), o.Close()); err != nil {
		return err
	}
	o, err := bolt.Open(path, bolt.Config{})
	if err != nil {
		return err
	}
	if err := errors.Join(holds(o, "opened again"), free()); err != nil {
		return err
	}
	adders(3, 20)
	if len(failures) > 0 {
		return fmt.Errorf("add with room: %w", failures[0])
	}
	for g := range 8 {
		e, _, err := o.Oldest(ctx, fmt.Sprint("k", g))
		if err == nil {
			err = o.Remove(ctx, e)
		}
		if err != nil {
			return fmt.Errorf("remove with room: %w", err)
		}
		delete(accepted, e.UUID)
	}
	say("ok %d entries, %d removed from a full disk", len(accepted), removed)
	return errors.Join(holds(o, "with room"), o.Close())
}

// limitChild fills a file that a limit of its process prevents from growing. The kernel returns EFBIG. This needs no
// root.
func limitChild(path string) error {
	signal.Ignore(syscall.SIGXFSZ)
	o, err := bolt.Open(path, bolt.Config{})
	if err != nil {
		return err
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		return err
	}
	limit := func(n uint64) error {
		return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: before.Max})
	}
	if err := limit(2<<20 + 1000); err != nil {
		return err
	}
	return fill(o, path, func() error { return limit(before.Cur) })
}

// run runs a child to its end and returns its last line.
func run(t *testing.T, part, arg string) (last string) {
	t.Helper()
	cmd, lines := child(t, part, arg)
	for lines.Scan() {
		last = lines.Text()
	}
	if err := cmd.Wait(); err != nil {
		return last + " " + err.Error()
	}
	return last
}

func TestAFileThatMayNotGrowIsAClearErrorAndLosesNothing(t *testing.T) {
	t.Parallel()
	if last := run(t, "limit", filepath.Join(t.TempDir(), "outbox.db")); !strings.HasPrefix(last, "ok ") {
		t.Error(last)
	} else {
		t.Log(last)
	}
}

// holdChild opens a file and keeps it until it is killed.
func holdChild(path string) error {
	if _, err := bolt.Open(path, bolt.Config{}); err != nil {
		return err
	}
	say("open")
	select {}
}

func TestAFileOfAnotherProcessIsAnErrorSoon(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "outbox.db")
	cmd, lines := child(t, "hold", path)
	if !lines.Scan() || lines.Text() != "open" {
		t.Fatalf("child: %q, %v", lines.Text(), lines.Err())
	}
	began := time.Now()
	if _, err := bolt.Open(path, bolt.Config{}); !errors.Is(err, bolt.ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want ErrLocked", err)
	}
	if took := time.Since(began); took > 20*time.Second { // two seconds on an idle machine
		t.Errorf("took %v", took)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	o := open(t, path, bolt.Config{}) // the lock ends with the process
	if _, err := bolt.Open(path, bolt.Config{}); !errors.Is(err, bolt.ErrLocked) {
		t.Errorf("twice in one process: %v, want ErrLocked", err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}
