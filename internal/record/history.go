package record

import "time"

// History is what a message records of its own past, in the headers of ADR 0007. It came over the wire and proves
// nothing. Values of the wrong type or out of range are treated as absent.
type History struct {
	Attempts   int       // attempts made so far
	Asked      int       // attempts that ended with RetryAfter
	RoutingKey string    // the key it was published with; "" = the key it came with
	Expires    time.Time // zero = never
	Losses     int
	Misses     int // how often a worker did not know its name
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

// FormatTime formats t so that Time can read it.
func FormatTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// MissedSince returns when the task was first missed: now, unless the message says otherwise.
func (h History) MissedSince(now time.Time) time.Time {
	if h.Missed.IsZero() || h.Missed.After(now) {
		return now
	}
	return h.Missed
}
