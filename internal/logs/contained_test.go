package logs

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
)

// moodyHandler is a user's handler that reads the context, and may panic.
type moodyHandler struct {
	slog.Handler
	panics bool
	source *string
}

func (h moodyHandler) Handle(ctx context.Context, r slog.Record) error {
	_ = ctx.Value("trace") // panics if ctx is nil
	if h.panics {
		panic("in Handle")
	}
	*h.source = filepath.Base(r.Source().File)
	return h.Handler.Handle(ctx, r)
}

func (h moodyHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return ctx.Value("trace") == nil && h.Handler.Enabled(ctx, level)
}

func (h moodyHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if h.panics {
		panic("in WithAttrs")
	}
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

func (h moodyHandler) WithGroup(name string) slog.Handler {
	h.Handler = h.Handler.WithGroup(name)
	return h
}

func TestAHandlerGetsContextSourceAndNoBlameForPanics(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	source := ""
	inner := slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn})
	slog.New(Contained(moodyHandler{inner, true, &source})).With("k", "v").Error("lost")
	log := slog.New(Contained(moodyHandler{inner, false, &source}.WithGroup("jobs")))
	log.Info("below its level")
	log.With("queue", "q").Warn("kept")
	if text := out.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "msg=kept jobs.queue=q") || source != "contained_test.go" {
		t.Errorf("%q from %q", text, source)
	}
}
