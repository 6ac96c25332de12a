package record

import "time"

// History is what a message records of its own past, in the headers of ADR 0007. It came over the wire and proves
// nothing. Values of the wrong type or out of range are treated as absent.
type History struct {
	Attempts     int       // attempts made so far
	Asked        int       // attempts that ended with RetryAfter
	RoutingKey   string    // the key it was published with; "" = the key it came with
	Expires      time.Time // zero = never
	Losses       int
	UnknownCount int       // how often a worker did not know its name
	UnknownAt    time.Time // when that was first; zero = never
}

// maxCount bounds the counts that are believed.
const maxCount = 1 << 30

// Read reads the history of a message from its headers.
func Read(headers map[string]any) (h History) {
	if len(headers) == 0 {
		return h
	}
	h.Attempts = Count(headers[HeaderAttempt])
	h.Asked = min(Count(headers[HeaderAsked]), h.Attempts)
	h.Losses = Count(headers[HeaderLosses])
	h.UnknownCount = Count(headers[HeaderMisses])
	h.Expires = Time(headers[HeaderExpiresAt])
	h.UnknownAt = Time(headers[HeaderMissedSince])
	if key, ok := headers[HeaderRoutingKey].(string); ok && len(key) <= MaxName {
		h.RoutingKey = key
	}
	return h
}

// String returns the value of a header that should be a string; "" if it is none.
func String(v any) string {
	s, _ := v.(string)
	return s
}

// Count returns the value of a header that should be a count; 0 if it is none, or above maxCount.
func Count(v any) int {
	if n, ok := v.(int64); ok && n > 0 && n <= maxCount {
		return int(n)
	}
	return 0
}

// Time returns the value of a header that FormatTime wrote; the zero time if it is none.
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

// UnknownSince returns when the name was first unknown: now, unless the message says otherwise.
func (h History) UnknownSince(now time.Time) time.Time {
	if h.UnknownAt.IsZero() || h.UnknownAt.After(now) {
		return now
	}
	return h.UnknownAt
}
