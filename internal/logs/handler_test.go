package logs

import (
	"errors"
	"log/slog"
	"math"
	"testing"
	"time"

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
