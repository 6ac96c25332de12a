package dispatcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
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
		t.Error("nil logger")
	}
}

// lines is a Log as programs for gofort/dispatcher have it: with six methods.
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

// warning is lines with a level for warnings.
type warning struct{ *lines }

func (w warning) Warnf(f string, args ...interface{}) { w.say("warn", f, args...) }

// A warning goes to Errorf if there is no Warnf: nothing that a person may have to look at is hidden among the infos.
func TestALogGetsLevelsAndPlainTexts(t *testing.T) {
	t.Parallel()
	var six, seven lines
	for l, want := range map[Log][]string{
		&six:            {"debug a", "info b 100% k=v", "error c", "error d"},
		warning{&seven}: {"debug a", "info b 100% k=v", "warn c", "error d"},
	} {
		cfg := &ServerConfig{Logger: l}
		log := cfg.contain()
		log.Debug("a")
		log.Info("b 100%", "k", "v")
		log.Warn("c")
		log.Error("d")
		if got := *map[bool]*lines{true: &six, false: &seven}[l == Log(&six)]; !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

// logrus gets attributes as fields, also beside those that its user has set.
func TestLogrusGetsFieldsAndWarnings(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := logrus.New()
	l.SetOutput(&out)
	l.SetFormatter(&logrus.JSONFormatter{DisableTimestamp: true})
	for _, log := range []Log{l, l.WithField("source", "dispatcher")} {
		(&ServerConfig{Logger: log}).contain().With("queue", "q").Warn("lost", "err", errors.New("x"), "n", 1)
	}
	if want := `{"err":"x","level":"warning","msg":"lost","n":1,"queue":"q"}
{"err":"x","level":"warning","msg":"lost","n":1,"queue":"q","source":"dispatcher"}
`; out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

// A handler of the user's own, which reads the context, and panics.
type moodyHandler struct {
	slog.Handler
	panics bool
	source *string
}

func (h moodyHandler) Handle(ctx context.Context, r slog.Record) error {
	_ = ctx.Value("trace") // of a nil context: a panic
	if h.panics {
		panic("in Handle")
	}
	*h.source = filepath.Base(r.Source().File)
	return h.Handler.Handle(ctx, r)
}

func (h moodyHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return ctx.Value("trace") == nil && h.Handler.Enabled(ctx, level)
}

func (h moodyHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if h.panics {
		panic("in WithAttrs")
	}
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

func (h moodyHandler) WithGroup(name string) slog.Handler {
	h.Handler = h.Handler.WithGroup(name)
	return h
}

func TestAHandlerGetsContextSourceAndNoBlameForPanics(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	source := ""
	inner := slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn})
	(&ServerConfig{Logger: SlogLogger(slog.New(moodyHandler{inner, true, &source}))}).contain().With("k", "v").Error("lost")
	log := (&ServerConfig{Logger: SlogLogger(slog.New(moodyHandler{inner, false, &source}).WithGroup("jobs"))}).contain()
	log.Info("below its level")
	log.With("queue", "q").Warn("kept")
	if text := out.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "msg=kept jobs.queue=q") || source != "logger_test.go" {
		t.Errorf("%q from %q", text, source)
	}
}
