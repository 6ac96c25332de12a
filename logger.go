package dispatcher

import (
	"fmt"
	"log/slog"

	"github.com/sirupsen/logrus"
)

// newLogger is the default: logrus on standard error, marked source=dispatcher as gofort/dispatcher did.
func newLogger(debug bool) Log {
	l := logrus.New()
	if debug {
		l.SetLevel(logrus.DebugLevel)
	}
	return l.WithField("source", "dispatcher")
}

// SlogLogger makes a [Log] of l; nil: slog.Default(). The messages are texts without attributes; add them with l.With.
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
func (s slogLog) Error(args ...interface{})                 { s.l.Error(fmt.Sprint(args...)) }
func (s slogLog) Errorf(format string, args ...interface{}) { s.l.Error(fmt.Sprintf(format, args...)) }
