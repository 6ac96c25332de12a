// Package record reads and writes what a message records of its own past: the headers of ADR 0007, and the log of
// attempts.
package record

import (
	"encoding/json"
	"math"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/text"
)

// Attempt describes one attempt of a task. It travels with the task and ends in its dead letter.
type Attempt struct {
	Number   int           // from 1
	At       time.Time     // when it began, by the worker's clock
	Duration time.Duration // whole milliseconds
	Worker   string
	Error    string // at most about 200 bytes; "" = none was reported
}

const (
	// MaxLogged bounds the log of a task that is retried for months. Its first attempt and the latest ones are kept.
	MaxLogged = 16
	// MaxLoggedError bounds the error text of each attempt. All headers of a message share one frame, of 128 KiB on
	// RabbitMQ.
	MaxLoggedError = 200
	// maxLogBytes is the size above which a log from outside is ignored.
	maxLogBytes = 64 << 10
	// maxMillis is 146 years, so that sums of durations do not overflow.
	maxMillis = math.MaxInt64 / 2 / int64(time.Millisecond)
)

// loggedAttempt is an Attempt in the JSON array of the header x-dispatcher-log.
type loggedAttempt struct {
	Number int       `json:"n"`
	At     time.Time `json:"at"`
	Millis int64     `json:"ms"`
	Worker string    `json:"worker,omitempty"`
	Error  string    `json:"error,omitempty"`
}

// Log reads the log of a message. It returns nil if the log does not parse.
func Log(headers map[string]any) []Attempt {
	text, _ := headers[HeaderLog].(string)
	if text == "" || len(text) > maxLogBytes {
		return nil
	}
	var logged []loggedAttempt
	if json.Unmarshal([]byte(text), &logged) != nil {
		return nil
	}
	log := make([]Attempt, len(logged))
	for i, l := range logged {
		millis := min(max(l.Millis, 0), maxMillis)
		log[i] = Attempt{
			Number:   l.Number,
			At:       l.At,
			Duration: time.Duration(millis) * time.Millisecond,
			Worker:   l.Worker,
			Error:    l.Error,
		}
	}
	return log
}

// WriteLog puts a log into headers, cut to the size that may travel.
func WriteLog(headers map[string]any, log []Attempt) {
	if len(log) > MaxLogged {
		log = append(log[:1:1], log[len(log)-MaxLogged+1:]...)
	}
	logged := make([]loggedAttempt, len(log))
	for i, a := range log {
		logged[i] = loggedAttempt{
			a.Number,
			a.At.UTC(),
			a.Duration.Milliseconds(),
			text.Cut(a.Worker, MaxName),
			text.Cut(a.Error, MaxLoggedError),
		}
	}
	text, err := json.Marshal(logged)
	if err != nil { // a time beyond year 9999, from outside
		delete(headers, HeaderLog)
		return
	}
	headers[HeaderLog] = string(text)
}
