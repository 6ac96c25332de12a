package logs

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/seed-416683c9/dispatcher/internal/contain"
)

func TestAttributesInAPlainText(t *testing.T) {
	t.Parallel()
	got := plainText("msg", []slog.Attr{
		slog.String("plain", "a-b:c/é"), slog.String("empty", ""), slog.String("space", "a b"), slog.String("equals", "a=b"), slog.String("line", "a\nb"),
		slog.String("quote", `a"b`), slog.String("escape", "a\x1b[31mb"), slog.Duration("took", 1500*time.Millisecond), slog.Int("n", -1),
		slog.Any("err", errors.New("x y")), slog.String(contain.StackKey, "f\n\tg"), slog.Any("nil", nil),
	})
	want := `msg plain=a-b:c/é empty="" space="a b" equals="a=b" line="a\nb" quote="a\"b" escape="a\x1b[31mb" took=1.5s n=-1 err="x y" nil=<nil>` + "\nf\n\tg"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestDurationsAreRoundedForPeople(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0s", 999: "999ns", 12345: "12.3µs", 1234567890: "1.23s", 83456 * time.Millisecond: "1m23.5s", 1500 * time.Millisecond: "1.5s",
		3*time.Hour + 25*time.Minute + 17*time.Second: "3h25m0s", math.MaxInt64 / 2: "1280555h33m20s",
	} {
		if got := Rounded(d).String(); got != want {
			t.Errorf("%d ns: %s, want %s", d, got, want)
		}
	}
}

// lines is a Log that keeps what it receives.
type lines []string

func (l *lines) say(level, format string, args ...any) {
	*l = append(*l, level+" "+fmt.Sprintf(format, args...))
}
func (l *lines) Infof(f string, args ...any)  { l.say("info", f, args...) }
func (l *lines) Debugf(f string, args ...any) { l.say("debug", f, args...) }
func (l *lines) Errorf(f string, args ...any) { l.say("error", f, args...) }

// warning is lines with a level for warnings.
type warning struct{ *lines }

func (w warning) Warnf(f string, args ...any) { w.say("warn", f, args...) }

// Without Warnf, a warning goes to Errorf, so that it is not hidden among the infos.
func TestALogGetsLevelsAndPlainTexts(t *testing.T) {
	t.Parallel()
	var three, four lines
	for _, c := range []struct {
		log  Log
		got  *lines
		want []string
	}{
		{&three, &three, []string{"debug a", "info b 100% k=v", "error c", "error d"}},
		{warning{&four}, &four, []string{"debug a", "info b 100% k=v", "warn c", "error d"}},
	} {
		log := slog.New(Handler(c.log))
		log.Debug("a")
		log.Info("b 100%", "k", "v")
		log.Warn("c")
		log.Error("d")
		if !slices.Equal(*c.got, c.want) {
			t.Errorf("got  %q\nwant %q", *c.got, c.want)
		}
	}
}

// logrus receives attributes as fields, beside those that its user has set.
func TestLogrusGetsFieldsAndWarnings(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := logrus.New()
	l.SetOutput(&out)
	l.SetFormatter(&logrus.JSONFormatter{DisableTimestamp: true})
	for _, log := range []Log{l, l.WithField("source", "dispatcher")} {
		slog.New(Handler(log)).With("queue", "q").Warn("lost", "err", errors.New("x"), "n", 1)
	}
	if want := `{"err":"x","level":"warning","msg":"lost","n":1,"queue":"q"}
{"err":"x","level":"warning","msg":"lost","n":1,"queue":"q","source":"dispatcher"}
`; out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
