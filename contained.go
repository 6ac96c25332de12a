package dispatcher

import (
	"context"
	"log/slog"

	"github.com/seed-416683c9/dispatcher/internal/contain"
	"github.com/seed-416683c9/dispatcher/internal/logs"
	"github.com/seed-416683c9/dispatcher/internal/publish"
)

// The user's Log and Outbox are called on the library's goroutines, where a panic would end the process. contain.Call
// contains the panics of hooks, and Shift.invoke those of task functions. hooks.go describes the effects of
// runtime.Goexit in a hook.

// contain wraps the user's Log in c and returns the library's logger.
func (c *ServerConfig) contain() *slog.Logger {
	log := slog.New(logs.Contained(handlerOf(c.Logger)))
	c.Logger = SlogLogger(log) // so that nothing calls the user's Logger directly
	return log
}

// outboxOf adapts the user's Outbox, so that nothing calls it directly. It returns nil if there is none.
func outboxOf(c *ServerConfig, log *slog.Logger) publish.Outbox {
	switch o := c.Outbox.(type) {
	case nil:
		return nil
	case *MemoryOutbox:
		return memoryOutbox{o}
	default:
		return containedOutbox{o, log}
	}
}

// memoryOutbox calls a MemoryOutbox on the caller's goroutine, since its methods neither panic nor end it.
type memoryOutbox struct{ outbox *MemoryOutbox }

func (o memoryOutbox) Add(ctx context.Context, e publish.Entry) error {
	return o.outbox.Add(ctx, OutboxEntry(e))
}

func (o memoryOutbox) Oldest(ctx context.Context, routingKey string) (publish.Entry, bool, error) {
	e, found, err := o.outbox.Oldest(ctx, routingKey)
	return publish.Entry(e), found, err
}

func (o memoryOutbox) Remove(ctx context.Context, e publish.Entry) error {
	return o.outbox.Remove(ctx, OutboxEntry(e))
}

func (o memoryOutbox) Bury(ctx context.Context, e publish.Entry) error {
	return o.outbox.Bury(ctx, OutboxEntry(e))
}

func (o memoryOutbox) Keys(ctx context.Context) ([]string, error) { return o.outbox.Keys(ctx) }

func (o memoryOutbox) Counts(ctx context.Context) (publish.Counts, error) {
	n, err := o.outbox.Counts(ctx)
	return publish.Counts(n), err
}

func (o memoryOutbox) Notify(added func(string)) { o.outbox.Notify(added) }
func (o memoryOutbox) Durable() bool             { return false }

// containedOutbox returns an error if a method panics or ends its goroutine. Each call runs on its own goroutine,
// because a carrier, or the caller of Publish, could not go on after runtime.Goexit.
type containedOutbox struct {
	outbox Outbox
	log    *slog.Logger
}

// Notify does nothing if the outbox is no [OutboxNotifier].
func (o containedOutbox) Notify(added func(string)) {
	if n, ok := o.outbox.(OutboxNotifier); ok {
		_, _ = contain.Do(o.log, "outbox", func() (struct{}, error) { n.Notify(added); return struct{}{}, nil })
	}
}

// Durable reports false if the outbox is no [DurableOutbox].
func (o containedOutbox) Durable() bool {
	d, ok := o.outbox.(DurableOutbox)
	if !ok {
		return false
	}
	durable, err := contain.Do(o.log, "outbox", func() (bool, error) { return d.Durable(), nil })
	return durable && err == nil
}

func (o containedOutbox) Add(ctx context.Context, e publish.Entry) error {
	_, err := contain.Do(o.log, "outbox", func() (struct{}, error) { return struct{}{}, o.outbox.Add(ctx, OutboxEntry(e)) })
	return err
}

func (o containedOutbox) Oldest(ctx context.Context, routingKey string) (publish.Entry, bool, error) {
	type oldest struct {
		entry OutboxEntry
		found bool
	}
	v, err := contain.Do(o.log, "outbox", func() (v oldest, err error) {
		v.entry, v.found, err = o.outbox.Oldest(ctx, routingKey)
		return v, err
	})
	return publish.Entry(v.entry), v.found, err
}

func (o containedOutbox) Remove(ctx context.Context, e publish.Entry) error {
	_, err := contain.Do(o.log, "outbox", func() (struct{}, error) { return struct{}{}, o.outbox.Remove(ctx, OutboxEntry(e)) })
	return err
}

func (o containedOutbox) Bury(ctx context.Context, e publish.Entry) error {
	_, err := contain.Do(o.log, "outbox", func() (struct{}, error) { return struct{}{}, o.outbox.Bury(ctx, OutboxEntry(e)) })
	return err
}

func (o containedOutbox) Keys(ctx context.Context) ([]string, error) {
	return contain.Do(o.log, "outbox", func() ([]string, error) { return o.outbox.Keys(ctx) })
}

func (o containedOutbox) Counts(ctx context.Context) (publish.Counts, error) {
	n, err := contain.Do(o.log, "outbox", func() (OutboxCounts, error) { return o.outbox.Counts(ctx) })
	return publish.Counts(n), err
}
