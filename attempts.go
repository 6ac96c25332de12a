package dispatcher

import (
	"time"

	"github.com/seed-416683c9/dispatcher/internal/record"
)

// Attempt is one line of a task's story: it travels with the task and ends in its dead letter.
type Attempt struct {
	Number   int           // from 1
	At       time.Time     // when it began, by the worker's clock
	Duration time.Duration // whole milliseconds
	Worker   string
	Error    string // at most about 200 bytes; "" = none was told
}

// attemptsOf returns a copy of a log; nil = there is none.
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
