package record

import (
	"math"
	"strings"
	"testing"
	"time"
)

// Anybody may write the headers of a message.
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
