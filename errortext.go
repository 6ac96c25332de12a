package dispatcher

import (
	"errors"
	"fmt"
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

// logText is what the log says of a dead letter. The values of arguments are left to its header, and a panic's stack, which a
// header could not hold, is told here.
func logText(v verdict) string {
	if v.reason == ReasonBadArguments { // otherwise the error is of the user's making, whose methods may panic
		if bad, ok := errors.AsType[*ArgumentError](v.err); ok {
			if bad.Position < 0 {
				return "want " + bad.Want
			}
			return fmt.Sprintf("argument %d: want %s", bad.Position, bad.Want)
		}
	}
	if p, ok := v.err.(*PanicError); ok {
		return oneLine(v.text) + "\n" + string(p.Stack)
	}
	return oneLine(v.text)
}

// oneLine keeps a text from outside from forging lines of the log.
func oneLine(text string) string { return cutText(text, maxErrorText+len("…")) }
