package dispatcher

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Headers come over the wire: anybody may write them.
func TestHistoryBelievesNothingThatIsOutOfRange(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	good := readHistory(map[string]any{
		headerAttempt: int64(3), headerAsked: int64(1), headerLosses: int64(2), headerMisses: int64(7), headerRoutingKey: "key",
		headerExpiresAt: writeInstant(at), headerMissedSince: writeInstant(at),
	})
	if want := (history{3, 1, "key", at, 2, 7, at}); good != want {
		t.Errorf("got %+v, want %+v", good, want)
	}
	for _, v := range []any{nil, "3", 3, int32(3), int64(-1), int64(math.MinInt64), int64(math.MaxInt64), 3.0, []byte("3"), true,
		strings.Repeat("x", 256), time.Now(), map[string]any{}, []any{int64(1)}, "0000-00-00T00:00:00Z"} {
		h := map[string]any{}
		for _, name := range []string{headerAttempt, headerAsked, headerLosses, headerMisses, headerExpiresAt, headerMissedSince, headerLog} {
			h[name] = v
		}
		if _, text := v.(string); !text || len(v.(string)) > 255 {
			h[headerRoutingKey] = v
		}
		if got := readHistory(h); got != (history{}) {
			t.Errorf("%v (%T): believed %+v", v, v, got)
		}
		if log := attemptLog(h); log != nil {
			t.Errorf("%v (%T): believed %+v", v, v, log)
		}
	}
}

func TestTheLogIsBoundedAndKeepsFirstAndLast(t *testing.T) {
	t.Parallel()
	h := map[string]any{}
	for n := 1; n <= 100; n++ {
		writeAttemptLog(h, append(attemptLog(h), Attempt{Number: n, At: time.Now(), Worker: strings.Repeat("w", 255), Error: strings.Repeat("é\x00<", 500)}))
	}
	log := attemptLog(h)
	if len(log) != maxLogged || log[0].Number != 1 || log[1].Number != 86 || log[maxLogged-1].Number != 100 {
		t.Errorf("%d entries: %v", len(log), log)
	}
	if n := len(h[headerLog].(string)); n > 16<<10 {
		t.Errorf("%d bytes", n)
	}
}

func TestALogReadsAsItWasWritten(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var log []Attempt
		for n := range rapid.IntRange(1, maxLogged).Draw(t, "n") {
			log = append(log, Attempt{
				Number: n + 1, At: time.Unix(rapid.Int64Range(0, 1<<35).Draw(t, "at"), 0).UTC(),
				Duration: time.Duration(rapid.Int64Range(0, 1<<40).Draw(t, "ms")) * time.Millisecond,
				Worker:   rapid.StringMatching(`[a-z<>&"é]{0,20}`).Draw(t, "worker"), Error: rapid.StringMatching(`[a-z<>&"é]{0,99}`).Draw(t, "error"),
			})
		}
		h := map[string]any{}
		writeAttemptLog(h, log)
		if got := attemptLog(h); fmt.Sprint(got) != fmt.Sprint(log) {
			t.Fatalf("got  %v\nwant %v", got, log)
		}
	})
}

// Its own headers must not make a message too large to be settled.
func TestACopyCanDoWithMostOfItsLog(t *testing.T) {
	t.Parallel()
	c := &call{delivery: broker.Delivery{Message: broker.Message{ID: "u", Headers: map[string]any{"user": "x"}}}}
	m := c.forwarded(verdict{action: toDeadLetters, reason: ReasonFailed, made: Attempt{Number: 1}, outcome: outcome{text: strings.Repeat("x", 1000)}}, "w", time.Now())
	slimDown(m.Headers)
	if log := attemptLog(m.Headers); len(log) != 1 || log[0].Number != 1 || log[0].Error != "" || len(m.Headers[headerError].(string)) > 300 || m.Headers["user"] != "x" || m.Headers[headerReason] != ReasonFailed {
		t.Errorf("headers %v", m.Headers)
	}
}

func TestALogOfSomebodyElsesIsDoneWithout(t *testing.T) {
	t.Parallel()
	h := map[string]any{headerLog: strings.Repeat("x", 130_000), "user": "x"}
	if slimDown(h); h[headerLog] != nil || h["user"] != "x" {
		t.Errorf("%d headers left", len(h))
	}
}
