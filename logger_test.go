package dispatcher

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

// D14: the ancestor's logger printed "task [a %!s(int=2)] of %!d(MISSING)".
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
	for _, want := range []string{"INFO msg=a1", `INFO msg="b 2"`, "DEBUG msg=c", `DEBUG msg="d 4"`, "ERROR msg=e", `ERROR msg="f 6"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q lacks %s", out.String(), want)
		}
	}
	if SlogLogger(nil) == nil {
		t.Error("nil logger")
	}
}
