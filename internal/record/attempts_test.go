package record

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestTheLogIsBoundedAndKeepsFirstAndLast(t *testing.T) {
	t.Parallel()
	h := map[string]any{}
	for n := 1; n <= 100; n++ {
		WriteLog(h, append(Log(h), Attempt{Number: n, At: time.Now(), Worker: strings.Repeat("w", 255), Error: strings.Repeat("é\x00<", 500)}))
	}
	log := Log(h)
	if len(log) != MaxLogged || log[0].Number != 1 || log[1].Number != 86 || log[MaxLogged-1].Number != 100 {
		t.Errorf("%d entries: %v", len(log), log)
	}
	if n := len(h[HeaderLog].(string)); n > 16<<10 {
		t.Errorf("%d bytes", n)
	}
}

func TestALogReadsAsItWasWritten(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var log []Attempt
		for n := range rapid.IntRange(1, MaxLogged).Draw(t, "n") {
			log = append(log, Attempt{
				Number: n + 1, At: time.Unix(rapid.Int64Range(0, 1<<35).Draw(t, "at"), 0).UTC(),
				Duration: time.Duration(rapid.Int64Range(0, 1<<40).Draw(t, "ms")) * time.Millisecond,
				Worker:   rapid.StringMatching(`[a-z<>&"é]{0,20}`).Draw(t, "worker"), Error: rapid.StringMatching(`[a-z<>&"é]{0,99}`).Draw(t, "error"),
			})
		}
		h := map[string]any{}
		WriteLog(h, log)
		if got := Log(h); fmt.Sprint(got) != fmt.Sprint(log) {
			t.Fatalf("got  %v\nwant %v", got, log)
		}
	})
}

// A sum with a duration from outside must not overflow.
func TestDurationsInALogAreClamped(t *testing.T) {
	t.Parallel()
	const longest = time.Duration(math.MaxInt64 / 2)
	for _, ms := range []string{"9223372036854775807", "-9223372036854775808"} {
		log := Log(map[string]any{HeaderLog: `[{"n":1,"at":"2026-01-02T03:04:05Z","ms":` + ms + `}]`})
		if len(log) != 1 || log[0].Duration < 0 || log[0].Duration > longest {
			t.Errorf("%s ms in a log: %v", ms, log)
		}
	}
}
