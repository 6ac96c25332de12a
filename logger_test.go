package dispatcher

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

// D14: gofort/dispatcher's logger printed "task [a %!s(int=2)] of %!d(MISSING)".
func TestD14LogTextsAreFormatted(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	entry := newLogger(true).(*logrus.Entry)
	entry.Logger.SetOutput(&out)
	entry.Infof("task %s of %d", "a", 2)
	entry.Error("b", 3)
	entry.Debugf("%v", "fine print")
	for _, want := range []string{`"task a of 2"`, `msg=b3`, `"fine print"`, "source=dispatcher"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q lacks %s", out.String(), want)
		}
	}
}

func TestDebugModeDecidesTheDefaultLevel(t *testing.T) {
	t.Parallel()
	for debug, want := range map[bool]logrus.Level{true: logrus.DebugLevel, false: logrus.InfoLevel} {
		if got := newLogger(debug).(*logrus.Entry).Logger.GetLevel(); got != want {
			t.Errorf("debug %v: level %v", debug, got)
		}
	}
}

func TestSlogLoggerKeepsTextAndLevel(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := SlogLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	l.Info("a", 1)
	l.Infof("b %d", 2)
	l.Debug("c")
	l.Debugf("d %d", 4)
	l.Error("e")
	l.Errorf("f %d", 6)
	warner := l.(interface {
		Warn(args ...interface{})
		Warnf(format string, args ...interface{})
	})
	warner.Warn("g")
	warner.Warnf("h %d", 8)
	for _, want := range []string{
		"INFO msg=a1", `INFO msg="b 2"`, "DEBUG msg=c", `DEBUG msg="d 4"`, "ERROR msg=e", `ERROR msg="f 6"`, "WARN msg=g", `WARN msg="h 8"`,
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q lacks %s", out.String(), want)
		}
	}
	if SlogLogger(nil) == nil {
		t.Error("SlogLogger(nil) returned nil")
	}
}

// lines is a Log with the six methods of gofort/dispatcher.
type lines []string

func (l *lines) say(level, format string, args ...interface{}) {
	*l = append(*l, level+" "+fmt.Sprintf(format, args...))
}
func (l *lines) Info(args ...interface{})             { l.say("info", "%s", fmt.Sprint(args...)) }
func (l *lines) Infof(f string, args ...interface{})  { l.say("info", f, args...) }
func (l *lines) Debug(args ...interface{})            { l.say("debug", "%s", fmt.Sprint(args...)) }
func (l *lines) Debugf(f string, args ...interface{}) { l.say("debug", f, args...) }
func (l *lines) Error(args ...interface{})            { l.say("error", "%s", fmt.Sprint(args...)) }
func (l *lines) Errorf(f string, args ...interface{}) { l.say("error", f, args...) }

// Each kind of Log receives the library's messages in the form that it can take. Package logs tests the forms.
func TestEachKindOfLogGetsItsForm(t *testing.T) {
	t.Parallel()
	var six lines
	var slogged, logrused bytes.Buffer
	l := logrus.New()
	l.SetOutput(&logrused)
	l.SetFormatter(&logrus.JSONFormatter{DisableTimestamp: true})
	for _, log := range []Log{
		&six,
		l.WithField("source", "mine"),
		SlogLogger(slog.New(slog.NewTextHandler(&slogged, &slog.HandlerOptions{Level: slog.LevelWarn})).WithGroup("jobs")),
	} {
		logger := (&ServerConfig{Logger: log}).contain()
		logger.With("queue", "q").Warn("lost", "n", 1)
		if log == Log(&six) {
			logger.Info("b 100%", "k", "v")
			logger.Debug("a")
		} else {
			logger.Debug("below its level")
		}
	}
	if want := []string{"error lost queue=q n=1", "info b 100% k=v", "debug a"}; !slices.Equal(six, want) {
		t.Errorf("got  %q\nwant %q", six, want)
	}
	if got, want := logrused.String(), `{"level":"warning","msg":"lost","n":1,"queue":"q","source":"mine"}`+"\n"; got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	if got := slogged.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=WARN msg=lost jobs.queue=q jobs.n=1") {
		t.Errorf("got %q", got)
	}
}

// noisyHandler panics in Handle.
type noisyHandler struct{ slog.Handler }

func (noisyHandler) Handle(context.Context, slog.Record) error { panic("in Handle") }

func TestAHandlerThatPanicsHarmsNobody(t *testing.T) {
	t.Parallel()
	(&ServerConfig{Logger: SlogLogger(slog.New(noisyHandler{slog.NewTextHandler(new(bytes.Buffer), nil)}))}).contain().Error("lost")
}
