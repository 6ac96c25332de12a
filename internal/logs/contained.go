package logs

import (
	"context"
	"log/slog"
)

// Contained returns a handler that drops a message if h panics.
func Contained(h slog.Handler) slog.Handler { return containedHandler{h} }

type containedHandler struct{ h slog.Handler }

func swallow() { _ = recover() }

func (c containedHandler) Enabled(ctx context.Context, level slog.Level) bool {
	defer swallow()
	return c.h.Enabled(ctx, level)
}

func (c containedHandler) Handle(ctx context.Context, r slog.Record) error {
	defer swallow()
	return c.h.Handle(ctx, r)
}

func (c containedHandler) WithAttrs(attrs []slog.Attr) (with slog.Handler) {
	with = c
	defer swallow()
	return containedHandler{c.h.WithAttrs(attrs)}
}

func (c containedHandler) WithGroup(name string) (with slog.Handler) {
	with = c
	defer swallow()
	return containedHandler{c.h.WithGroup(name)}
}
