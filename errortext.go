package dispatcher

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/seed-416683c9/dispatcher/internal/contain"
	"github.com/seed-416683c9/dispatcher/internal/text"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// logText returns the text that is logged for an attempt's error. It omits argument values, which belong in the header
// of a dead letter.
func logText(v verdict.Verdict) string {
	if v.Reason == ReasonBadArguments { // any other error is the user's, and its methods may panic
		if bad, ok := errors.AsType[*ArgumentError](v.Err); ok {
			if bad.Position < 0 {
				return "want " + bad.Want
			}
			return fmt.Sprintf("argument %d: want %s", bad.Position, bad.Want)
		}
	}
	return text.OneLine(v.Text)
}

// attrsOf returns the log attributes of an outcome: attrs, then the error, then the stack of a panic.
func attrsOf(o verdict.Outcome, text string, attrs ...any) []any {
	if o.Err != nil {
		attrs = append(attrs, "err", text)
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

// about returns the logger for the task of a call. attempt is its number; 0 means none.
func (s *shift) about(c *call, attempt int) *slog.Logger {
	log := s.w.log.With("task", text.Excerpt(c.name), "uuid", text.Excerpt(c.uuid))
	if attempt > 0 {
		log = log.With("attempt", attempt)
	}
	return log
}
