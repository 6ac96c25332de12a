package record

import "time"

// History is what a message says of its own past, in the headers of ADR 0007. It came over the wire and proves nothing: what is
// of the wrong type or out of range is absent.
type History struct {
	Attempts   int       // made so far
	Asked      int       // those of them that ended with RetryAfter
	RoutingKey string    // what it was published with; "" = as it came
	Expires    time.Time // zero = never
	Losses     int
	Misses     int // how often no worker knew its name
	Missed     time.Time
}

// maxCount bounds the counts that are believed.
const maxCount = 1 << 30

func Read(headers map[string]any) (h History) {
	if len(headers) == 0 {
		return h
	}
	h.Attempts = Count(headers[HeaderAttempt])
	h.Asked = min(Count(headers[HeaderAsked]), h.Attempts)
	h.Losses = Count(headers[HeaderLosses])
	h.Misses = Count(headers[HeaderMisses])
	h.Expires = Time(headers[HeaderExpiresAt])
	h.Missed = Time(headers[HeaderMissedSince])
	if key, ok := headers[HeaderRoutingKey].(string); ok && len(key) <= MaxName {
		h.RoutingKey = key
	}
	return h
}

func String(v any) string {
	s, _ := v.(string)
	return s
}

func Count(v any) int {
	if n, ok := v.(int64); ok && n > 0 && n <= maxCount {
		return int(n)
	}
	return 0
}

func Time(v any) time.Time {
	s := String(v)
	if s == "" || len(s) > 64 {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}
	}
	return at
}

// FormatTime is how instant reads it.
func FormatTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// missedSince is when the task was first missed: now, unless the message says so.
func (h History) MissedSince(now time.Time) time.Time {
	if h.Missed.IsZero() || h.Missed.After(now) {
		return now
	}
	return h.Missed
}
