package dispatcher

import (
	"fmt"
	"log/slog"
	"time"

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

// drain calls stop and logs the begin and the end of a shutdown, with the number of running calls and the time it took.
// again means that the shutdown is already under way or over. said is as in logs.Brief.
func drain(log *slog.Logger, again bool, running int, stop func() error, said ...string) error {
	began := time.Now()
	if !again {
		log.Info("shutdown begins", "running", running)
	}
	err := stop()
	switch took := logs.Rounded(time.Since(began)); {
	case err != nil:
		log.Error("shutdown is incomplete", "took", took, "err", logs.Brief(err, said...))
	case !again:
		log.Info("shutdown ended", "took", took)
	}
	return err
}
