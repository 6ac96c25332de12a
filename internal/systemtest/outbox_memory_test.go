package systemtest_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/seed-416683c9/dispatcher"
)

func TestAFullOutboxIsAClearError(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cfg  dispatcher.MemoryOutboxConfig
		task func(i int) *dispatcher.Task
	}{
		"entries": {dispatcher.MemoryOutboxConfig{MaxEntries: 3}, func(int) *dispatcher.Task { return dispatcher.NewTask("n") }},
		"bytes": {dispatcher.MemoryOutboxConfig{MaxBytes: 100_000}, func(int) *dispatcher.Task {
			return dispatcher.NewTask("n", strings.Repeat("x", 30_000))
		}},
		"headers": {dispatcher.MemoryOutboxConfig{MaxBytes: 100_000}, func(int) *dispatcher.Task {
			return &dispatcher.Task{Name: "n", Headers: map[string]interface{}{"h": []any{map[string]any{"b": make([]byte, 15_000), "s": strings.Repeat("x", 15_000)}}}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withQueue, withOutbox(c.cfg))
				down(r, true)
				for i := range 3 {
					kept(t, "while there is room", r.server.Publish(c.task(i)))
				}
				task := c.task(3)
				err := r.server.Publish(task)
				outcome(t, "full", err, dispatcher.ErrOutboxFull)
				if !errors.Is(err, dispatcher.ErrNotSent) || !strings.Contains(err.Error(), "3 entries, 0 of them dead") || task.UUID == "" {
					t.Errorf("got %v", err)
				}
				for _, err := range r.server.PublishBatch(t.Context(), []*dispatcher.Task{c.task(4), c.task(5)}) {
					outcome(t, "full, batch", err, dispatcher.ErrOutboxFull)
				}
				if s := r.server.Stats(); s.Outboxed != 3 || s.NotSent != 3 {
					t.Errorf("stats %+v", s)
				}
				up(r)
				drained(t, r)
				if err := r.server.Publish(task); err != nil {
					t.Error(err)
				}
				if n := r.inspect("jobs").Ready; n != 4 {
					t.Errorf("%d messages, want 4", n)
				}
			})
		})
	}
}

func TestATaskLargerThanTheWholeOutboxIsNotSentWhileDisconnected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, withOutbox(dispatcher.MemoryOutboxConfig{MaxBytes: 1000}), func(c *dispatcher.ServerConfig) { c.MaxBodyBytes = -1 })
		huge := dispatcher.NewTask("n", strings.Repeat("x", 3<<20))
		if err := r.server.Publish(huge); err != nil {
			t.Errorf("connected: %v", err)
		}
		down(r, true)
		outcome(t, "disconnected", r.server.Publish(huge), dispatcher.ErrOutboxFull)
	})
}

func TestMemoryOutboxForgetsOnlyWhatItIsTold(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	o := dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})
	for i := range 12 {
		if err := o.Add(ctx, dispatcher.OutboxEntry{RoutingKey: fmt.Sprint("k", i%2), UUID: fmt.Sprint(i), ID: "of the caller's"}); err != nil {
			t.Fatal(err)
		}
	}
	uuids := func() string {
		var all []string
		for _, e := range o.Entries() {
			all = append(all, e.UUID)
		}
		return strings.Join(all, " ")
	}
	if got := uuids(); got != "0 1 2 3 4 5 6 7 8 9 10 11" {
		t.Errorf("entries %s", got)
	}
	all := o.Entries()
	for _, e := range []dispatcher.OutboxEntry{all[4], all[4], all[0], {RoutingKey: "k1", ID: all[2].ID}, {RoutingKey: "none", ID: "1"}} {
		if err := errors.Join(o.Remove(ctx, e), o.Bury(ctx, e)); err != nil {
			t.Error(err)
		}
	}
	if err := o.Bury(ctx, all[11]); err != nil {
		t.Error(err)
	}
	if got := uuids(); got != "1 2 3 5 6 7 8 9 10" {
		t.Errorf("entries %s", got)
	}
	if e, ok, err := o.Oldest(ctx, "k0"); err != nil || !ok || e.UUID != "2" {
		t.Errorf("oldest %+v, %t, %v", e, ok, err)
	}
	if _, ok, err := o.Oldest(ctx, "none"); ok || err != nil {
		t.Errorf("%t, %v", ok, err)
	}
	if n, err := o.Counts(ctx); err != nil || n != (dispatcher.OutboxCounts{Entries: 9, Dead: 1}) {
		t.Errorf("counts %+v, %v", n, err)
	}
	if keys, err := o.Keys(ctx); err != nil || len(keys) != 2 {
		t.Errorf("keys %v, %v", keys, err)
	}
}
