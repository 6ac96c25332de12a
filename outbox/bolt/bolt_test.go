package bolt_test

import (
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/outbox/bolt"
	"github.com/seed-416683c9/dispatcher/outboxtest"
)

func verifyMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(tb testing.TB, path string, cfg bolt.Config) *bolt.Outbox {
	tb.Helper()
	o, err := bolt.Open(path, cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = o.Close() })
	return o
}

func TestBoltPassesTheSuite(t *testing.T) {
	t.Parallel()
	var paths sync.Map // of each outbox
	outboxtest.Run(t, outboxtest.Harness{
		New: func(tb testing.TB, maxEntries int) dispatcher.Outbox {
			path := filepath.Join(tb.TempDir(), "outbox.db")
			o := open(tb, path, bolt.Config{MaxEntries: maxEntries})
			paths.Store(o, path)
			return o
		},
		Restart: func(tb testing.TB, o dispatcher.Outbox) dispatcher.Outbox {
			if err := o.(*bolt.Outbox).Close(); err != nil {
				tb.Fatal(err)
			}
			path, _ := paths.Load(o)
			next := open(tb, path.(string), bolt.Config{})
			paths.Store(next, path)
			return next
		},
		Dead: func(o dispatcher.Outbox) ([]dispatcher.OutboxEntry, error) { return o.(*bolt.Outbox).Dead(t.Context()) },
		Retry: func(o dispatcher.Outbox, e dispatcher.OutboxEntry) (bool, error) {
			return o.(*bolt.Outbox).RetryDead(t.Context(), e)
		},
		Remove: func(o dispatcher.Outbox, e dispatcher.OutboxEntry) (bool, error) {
			return o.(*bolt.Outbox).RemoveDead(t.Context(), e)
		},
	})
}
