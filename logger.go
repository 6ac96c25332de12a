package dispatcher

import (
	"fmt"
	"log/slog"

	"github.com/sirupsen/logrus"

	"github.com/seed-416683c9/dispatcher/internal/logs"
)

// The library logs a constant text and attributes to a *slog.Logger. Package logs passes them to a Log.

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
	return logs.Handler(l)
}
