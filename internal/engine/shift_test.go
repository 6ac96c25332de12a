package engine

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// A worker that prefetches more than it has slots holds a delivery while others run before it.
func TestTheWarningOfTheConsumerTimeoutCountsTheCallsBefore(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		limit, prefetch int
		want            time.Duration
	}{
		{1, 1, 30*time.Minute - verdict.Grace},
		{10, 10, 30*time.Minute - verdict.Grace},
		{10, 0, 25*time.Minute - verdict.Grace},
		{10, 11, 15*time.Minute - verdict.Grace},
		{2, 6, 10*time.Minute - verdict.Grace},
	} {
		var log bytes.Buffer
		var asked time.Duration
		s := New(&Config{
			Limit: c.limit, Prefetch: c.prefetch, Noun: "job", Counters: &Counters{}, Shared: NewShared(),
			Log:      slog.New(slog.NewTextHandler(&log, nil)),
			Overlong: func(d time.Duration) []string { asked = d; return []string{"b", "a"} },
		})
		s.warnOfConsumerTimeout(30 * time.Minute)
		s.phases.end()
		if asked != c.want || !strings.Contains(log.String(), `jobs="a, b"`) {
			t.Errorf("limit %d, prefetch %d: asked for calls of at least %v, want %v; log %s", c.limit, c.prefetch, asked, c.want, log.String())
		}
	}
}

// A broker that sets no bound needs no warning.
func TestThereIsNoWarningWithoutAConsumerTimeout(t *testing.T) {
	t.Parallel()
	s := New(&Config{Limit: 1, Prefetch: 1, Counters: &Counters{}, Shared: NewShared(), Overlong: func(time.Duration) []string {
		t.Error("it asks for long calls")
		return nil
	}})
	s.warnOfConsumerTimeout(0)
	s.phases.end()
}
