package record

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Headers come over the wire: anybody may write them.
func TestHistoryBelievesNothingThatIsOutOfRange(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	good := Read(map[string]any{
		HeaderAttempt: int64(3), HeaderAsked: int64(1), HeaderLosses: int64(2), HeaderMisses: int64(7), HeaderRoutingKey: "key",
		HeaderExpiresAt: FormatTime(at), HeaderMissedSince: FormatTime(at),
	})
	if want := (History{3, 1, "key", at, 2, 7, at}); good != want {
		t.Errorf("got %+v, want %+v", good, want)
	}
	for _, v := range []any{nil, "3", 3, int32(3), int64(-1), int64(math.MinInt64), int64(math.MaxInt64), 3.0, []byte("3"), true,
		strings.Repeat("x", 256), time.Now(), map[string]any{}, []any{int64(1)}, "0000-00-00T00:00:00Z"} {
		h := map[string]any{}
		for _, name := range []string{HeaderAttempt, HeaderAsked, HeaderLosses, HeaderMisses, HeaderExpiresAt, HeaderMissedSince, HeaderLog} {
			h[name] = v
		}
		if _, text := v.(string); !text || len(v.(string)) > 255 {
			h[HeaderRoutingKey] = v
		}
		if got := Read(h); got != (History{}) {
			t.Errorf("%v (%T): believed %+v", v, v, got)
		}
		if log := Log(h); log != nil {
			t.Errorf("%v (%T): believed %+v", v, v, log)
		}
	}
}

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
