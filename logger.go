package dispatcher

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/sirupsen/logrus"
)

// The library logs a constant text and attributes to a *slog.Logger. logHandler passes them to a Log.

// newLogger returns the default Log: logrus on standard error, marked source=dispatcher as in gofort/dispatcher.
func newLogger(debug bool) Log {
	l := logrus.New()
	if debug {
		l.SetLevel(logrus.DebugLevel)
	}
	return l.WithField("source", "dispatcher")
}

// SlogLogger returns a [Log] that writes to l, or to slog.Default() if l is nil. As ServerConfig.Logger it passes each
// message to the handler of l as a text with attributes: see [Log]. It also has the methods Warn and Warnf.
func SlogLogger(l *slog.Logger) Log {
	if l == nil {
		l = slog.Default()
	}
	return slogLog{l}
}

type slogLog struct{ l *slog.Logger }

func (s slogLog) Info(args ...interface{})                  { s.l.Info(fmt.Sprint(args...)) }
func (s slogLog) Infof(format string, args ...interface{})  { s.l.Info(fmt.Sprintf(format, args...)) }
func (s slogLog) Debug(args ...interface{})                 { s.l.Debug(fmt.Sprint(args...)) }
func (s slogLog) Debugf(format string, args ...interface{}) { s.l.Debug(fmt.Sprintf(format, args...)) }
func (s slogLog) Warn(args ...interface{})                  { s.l.Warn(fmt.Sprint(args...)) }
func (s slogLog) Warnf(format string, args ...interface{})  { s.l.Warn(fmt.Sprintf(format, args...)) }
func (s slogLog) Error(args ...interface{})                 { s.l.Error(fmt.Sprint(args...)) }
func (s slogLog) Errorf(format string, args ...interface{}) { s.l.Error(fmt.Sprintf(format, args...)) }

// handlerOf returns the handler of the library's messages for l.
func handlerOf(l Log) slog.Handler {
	if s, ok := l.(slogLog); ok {
		return s.l.Handler()
	}
	return logHandler{log: l}
}

// logHandler passes records to a Log that is not a slogLog.
type logHandler struct {
	log   Log
	attrs []slog.Attr
}

func (h logHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return logHandler{h.log, slices.Concat(h.attrs, attrs)}
}

// WithGroup is never called: the library has no groups.
func (h logHandler) WithGroup(string) slog.Handler { return h }

func (h logHandler) Handle(_ context.Context, r slog.Record) error {
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

// stackKey is the attribute that plainText writes on lines of its own.
const stackKey = "stack"

// plainText returns a message followed by its attributes. Values that could forge an attribute or a line are quoted.
func plainText(message string, attrs []slog.Attr) string {
	stack := ""
	for _, a := range attrs {
		v := a.Value.String()
		switch {
		case a.Key == stackKey:
			stack = "\n" + v
			continue
		case v == "" || strings.ContainsFunc(v, func(r rune) bool { return r == '"' || r == '=' || unicode.IsSpace(r) || !unicode.IsPrint(r) }):
			v = strconv.Quote(v)
		}
		message += " " + a.Key + "=" + v
	}
	return message + stack
}

// rounded returns a duration with three digits, for people.
func rounded(d time.Duration) time.Duration {
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit)
}

// brief returns the text of an error without the parts that its line in the log already has: that a session or delivery
// was lost, and beginnings such as `declare queue "jobs": `.
func brief(err error, said ...string) string {
	text := err.Error()
	for _, s := range append(said, "delivery lost: ", "consumer lost: ", "session lost: ") {
		text = strings.TrimPrefix(text, s)
	}
	return text
}

// drain calls stop and logs the begin and the end of a shutdown, with the number of running calls and the time it took.
// again means that the shutdown is already under way or over. said is as in brief.
func drain(log *slog.Logger, again bool, running int, stop func() error, said ...string) error {
	began := time.Now()
	if !again {
		log.Info("shutdown begins", "running", running)
	}
	err := stop()
	switch took := rounded(time.Since(began)); {
	case err != nil:
		log.Error("shutdown is incomplete", "took", took, "err", brief(err, said...))
	case !again:
		log.Info("shutdown ended", "took", took)
	}
	return err
}
