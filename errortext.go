package dispatcher

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"unicode/utf8"
)

// maxErrorText bounds the text of an error in a header: a frame of RabbitMQ, which must hold all headers of a message, may
// be as small as 4 KiB (AMQP 0-9-1, frame-min-size), and a stack or a page of HTML is no error text.
const maxErrorText = 1024

// errorText is the text of a task's error, bounded and valid UTF-8. It runs the error's own method, and contains its panics:
// fmt does so too, but not when printing what was panicked with panics again.
func errorText(err error) (text string) {
	if err == nil {
		return "ok"
	}
	defer func() {
		if recover() != nil {
			text = fmt.Sprintf("error of type %T whose text panicked", err)
		}
	}()
	text = strings.ToValidUTF8(fmt.Sprintf("%v", err), "\uFFFD")
	if len(text) <= maxErrorText {
		return text
	}
	cut := maxErrorText
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}

// logText is what the log says of an attempt's error. The values of arguments are left to the header of a dead letter.
func logText(v verdict) string {
	if v.reason == ReasonBadArguments { // otherwise the error is of the user's making, whose methods may panic
		if bad, ok := errors.AsType[*ArgumentError](v.err); ok {
			if bad.Position < 0 {
				return "want " + bad.Want
			}
			return fmt.Sprintf("argument %d: want %s", bad.Position, bad.Want)
		}
	}
	return oneLine(v.text)
}

// attrs are what a line of the log says of an outcome: its own attributes, then the error, then the stack of a panic.
func (o outcome) attrs(text string, attrs ...any) []any {
	if o.err != nil {
		attrs = append(attrs, "err", text)
	}
	return o.withStack(attrs)
}

// withStack adds the stack of a panic, once.
func (o outcome) withStack(attrs []any) []any {
	if o.stack != nil {
		if stack := o.stack.Swap(nil); stack != nil {
			attrs = append(attrs, stackKey, *stack)
		}
	}
	return attrs
}

// about is the logger of what happens to the task of a call. attempt: its number; 0 = none.
func (s *shift) about(c *call, attempt int) *slog.Logger {
	log := s.w.log.With("task", excerpt(c.name), "uuid", excerpt(c.uuid))
	if attempt > 0 {
		log = log.With("attempt", attempt)
	}
	return log
}

// oneLine keeps a text from outside from forging lines of the log.
func oneLine(text string) string { return cutText(text, maxErrorText+len("…")) }
