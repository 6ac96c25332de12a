package dispatcher

import "time"

// history is what a message says of its own past, in the headers of ADR 0007. It came over the wire and proves nothing: what is
// of the wrong type or out of range is absent.
type history struct {
	attempts   int       // made so far
	asked      int       // those of them that ended with RetryAfter
	routingKey string    // what it was published with; "" = as it came
	expires    time.Time // zero = never
	losses     int
	misses     int // how often no worker knew its name
	missed     time.Time
}

// maxCount bounds the counts that are believed.
const maxCount = 1 << 30

func readHistory(headers map[string]any) (h history) {
	if len(headers) == 0 {
		return h
	}
	h.attempts = count(headers[headerAttempt])
	h.asked = min(count(headers[headerAsked]), h.attempts)
	h.losses = count(headers[headerLosses])
	h.misses = count(headers[headerMisses])
	h.expires = instant(headers[headerExpiresAt])
	h.missed = instant(headers[headerMissedSince])
	if key, ok := headers[headerRoutingKey].(string); ok && len(key) <= maxNameBytes {
		h.routingKey = key
	}
	return h
}

func stringOf(v any) string {
	s, _ := v.(string)
	return s
}

func count(v any) int {
	if n, ok := v.(int64); ok && n > 0 && n <= maxCount {
		return int(n)
	}
	return 0
}

func instant(v any) time.Time {
	s := stringOf(v)
	if s == "" || len(s) > 64 {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}
	}
	return at
}

// writeInstant is how instant reads it.
func writeInstant(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// missedSince is when the task was first missed: now, unless the message says so.
func (h history) missedSince(now time.Time) time.Time {
	if h.missed.IsZero() || h.missed.After(now) {
		return now
	}
	return h.missed
}
