// Package text cuts texts from outside to a size that a log, an error or a header can hold.
package text

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxError bounds the text of an error in a header. A frame of RabbitMQ must hold all headers of a message and may be
// as small as 4 KiB (AMQP 0-9-1, frame-min-size). A stack or a page of HTML is no error text.
const maxError = 1024

// OfError returns the text of a task's error, bounded and valid UTF-8. It runs the error's own method and contains its
// panics. fmt does so too, but not if printing the panic's value panics again.
func OfError(err error) (text string) {
	if err == nil {
		return "ok"
	}
	defer func() {
		if recover() != nil {
			text = fmt.Sprintf("error of type %T whose Error method panicked", err)
		}
	}()
	text = strings.ToValidUTF8(fmt.Sprintf("%v", err), "\uFFFD")
	if len(text) <= maxError {
		return text
	}
	cut := maxError
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}

// OneLine cuts a text from outside to one line, so that it cannot forge lines of the log.
func OneLine(text string) string { return Cut(text, maxError+len("…")) }

// Excerpt cuts a value for an error to at most 64 bytes, one line and valid UTF-8.
func Excerpt[T ~string | ~[]byte](text T) string { return Cut(text, 64) }

// Reason cuts the text of another error, which may quote a value.
func Reason(err error) string { return Cut(err.Error(), 160) }

// Cut returns at most most bytes of a text as one line of valid UTF-8, followed by … if it was longer.
func Cut[T ~string | ~[]byte](text T, most int) string {
	cut := len(text) > most
	s := string(text[:min(len(text), most)])
	for i := len(s) - 1; cut && i >= max(len(s)-utf8.UTFMax, 0); i-- {
		if utf8.RuneStart(s[i]) {
			if !utf8.FullRuneInString(s[i:]) { // the cut went through it
				s = s[:i]
			}
			break
		}
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if cut {
		s += "…"
	}
	return s
}
