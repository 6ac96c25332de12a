package outboxtest

import (
	"testing"

	"github.com/seed-416683c9/dispatcher"
)

// memoryHarness returns a harness for a MemoryOutbox that wrap has wrapped.
func memoryHarness(wrap func(*dispatcher.MemoryOutbox) dispatcher.Outbox) Harness {
	inner := func(o dispatcher.Outbox) *dispatcher.MemoryOutbox {
		if b, ok := o.(*broken); ok {
			return b.MemoryOutbox
		}
		return o.(*dispatcher.MemoryOutbox)
	}
	return Harness{
		New: func(_ testing.TB, maxEntries int) dispatcher.Outbox {
			return wrap(dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{MaxEntries: maxEntries}))
		},
		// A MemoryOutbox ends with its process, so this only exercises the tests of the area.
		Restart: func(_ testing.TB, o dispatcher.Outbox) dispatcher.Outbox { return o },
		Dead:    func(o dispatcher.Outbox) ([]dispatcher.OutboxEntry, error) { return inner(o).Dead(), nil },
		Retry:   func(o dispatcher.Outbox, e dispatcher.OutboxEntry) (bool, error) { return inner(o).RetryDead(e), nil },
		Remove:  func(o dispatcher.Outbox, e dispatcher.OutboxEntry) (bool, error) { return inner(o).RemoveDead(e), nil },
	}
}

func TestMemoryOutboxPassesTheSuite(t *testing.T) {
	t.Parallel()
	Run(t, memoryHarness(func(o *dispatcher.MemoryOutbox) dispatcher.Outbox { return o }))
}
