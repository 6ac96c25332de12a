package dispatcher

import (
	"time"

	"github.com/seed-416683c9/dispatcher/internal/record"
)

// Attempt describes one attempt of a task. It travels with the task and ends in its dead letter.
type Attempt struct {
	Number   int           // from 1
	At       time.Time     // when it began, by the worker's clock
	Duration time.Duration // whole milliseconds
	Worker   string
	Error    string // at most about 200 bytes; "" = none was given
}

// attemptsOf returns a copy of a log, or nil if there is none.
func attemptsOf(log []record.Attempt) []Attempt {
	if log == nil {
		return nil
	}
	attempts := make([]Attempt, len(log))
	for i, a := range log {
		attempts[i] = Attempt(a)
	}
	return attempts
}
