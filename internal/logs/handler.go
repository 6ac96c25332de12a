// Package logs writes the library's messages, a constant text and attributes, to a Log.
package logs

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/sirupsen/logrus"

	"github.com/seed-416683c9/dispatcher/internal/contain"
)

// Log is the part of the root package's Log that the library calls.
type Log interface {
	Infof(format string, args ...any)
	Debugf(format string, args ...any)
	Errorf(format string, args ...any)
}

// Handler passes records to a Log.
func Handler(log Log) slog.Handler { return handler{log: log} }

type handler struct {
	log   Log
	attrs []slog.Attr
}

func (h handler) Enabled(context.Context, slog.Level) bool { return true }

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.log, slices.Concat(h.attrs, attrs)}
}

// WithGroup is never called: the library has no groups.
func (h handler) WithGroup(string) slog.Handler { return h }

func (h handler) Handle(_ context.Context, r slog.Record) error {
	attrs := slices.Clone(h.attrs)
	r.Attrs(func(a slog.Attr) bool { attrs = append(attrs, a); return true })
	log, text := h.log, r.Message
	switch l := log.(type) { // exactly these: a type that embeds one may have its own methods
	case *logrus.Logger:
		log = l.WithFields(fields(attrs))
	case *logrus.Entry:
		log = l.WithFields(fields(attrs))
	default:
		text = plainText(text, attrs)
	}
	say := log.Errorf
	switch {
	case r.Level < slog.LevelInfo:
		say = log.Debugf
	case r.Level < slog.LevelWarn:
		say = log.Infof
	case r.Level < slog.LevelError:
		if w, ok := log.(interface {
			Warnf(format string, args ...interface{})
		}); ok {
			say = w.Warnf
		}
	}
	say("%s", text)
	return nil
}

func fields(attrs []slog.Attr) logrus.Fields {
	f := make(logrus.Fields, len(attrs))
	for _, a := range attrs {
		f[a.Key] = a.Value.Any()
	}
	return f
}

// plainText returns a message followed by its attributes, a stack on lines of its own. Values that could forge an
// attribute or a line are quoted.
func plainText(message string, attrs []slog.Attr) string {
	stack := ""
	forges := func(r rune) bool { return r == '"' || r == '=' || unicode.IsSpace(r) || !unicode.IsPrint(r) }
	for _, a := range attrs {
		v := a.Value.String()
		switch {
		case a.Key == contain.StackKey:
			stack = "\n" + v
			continue
		case v == "" || strings.ContainsFunc(v, forges):
			v = strconv.Quote(v)
		}
		message += " " + a.Key + "=" + v
	}
	return message + stack
}

// Rounded returns a duration with three digits, for people.
func Rounded(d time.Duration) time.Duration {
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit)
}

// Brief returns the text of an error without the parts that its line in the log already has: that a session or delivery
// was lost, and beginnings such as `declare queue "jobs": `.
func Brief(err error, said ...string) string {
	text := err.Error()
	for _, s := range append(said, "delivery lost: ", "consumer lost: ", "session lost: ") {
		text = strings.TrimPrefix(text, s)
	}
	return text
}
