package engine

import (
	"log/slog"

	"github.com/seed-416683c9/dispatcher/internal/contain"
	"github.com/seed-416683c9/dispatcher/internal/text"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// about returns the logger for a call. attempt is its number; 0 means none.
func (c *Config) about(of *Call, attempt int) *slog.Logger {
	log := c.Log.With(c.Noun, text.Excerpt(of.Name), "uuid", text.Excerpt(of.ID))
	if attempt > 0 {
		log = log.With("attempt", attempt)
	}
	return log
}

// logText returns the text that is logged for an outcome. It has no argument values, which belong in the header of a
// dead letter.
func logText(o verdict.Outcome) string {
	if o.Logged != "" {
		return o.Logged
	}
	return text.OneLine(o.Text)
}

// attrsOf returns the log attributes of an outcome: attrs, then the error, then the stack of a panic.
func attrsOf(o verdict.Outcome, attrs ...any) []any {
	if o.Err != nil {
		attrs = append(attrs, "err", logText(o))
	}
	return withStack(o, attrs)
}

// withStack adds the stack of a panic, once.
func withStack(o verdict.Outcome, attrs []any) []any {
	if o.Stack != nil {
		if stack := o.Stack.Swap(nil); stack != nil {
			attrs = append(attrs, contain.StackKey, *stack)
		}
	}
	return attrs
}
