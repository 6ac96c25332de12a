// Package fault has the errors of the rooms that users compare with. The root package re-exports and documents them.
package fault

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-416683c9/dispatcher/broker"
)

//lint:file-ignore ST1005 The texts of gofort/dispatcher are kept to the letter: programs compare them.

// Why there is no session. Both Is broker.ErrNotSent.
var (
	ErrDisconnected = New("Service is disconnected", broker.ErrNotSent)
	ErrServerClosed = New("server is closed", broker.ErrNotSent)
)

// What the outbox has: a message that could not be sent now, and entries that remain at the end.
var (
	ErrInOutbox       = errors.New("kept in the outbox; do not publish again")
	ErrOutboxNotEmpty = errors.New("tasks are left in the outbox")
)

// Why an attempt ended, or was never made.
var (
	ErrTimeout     = New("task timeout", context.DeadlineExceeded)
	ErrShutdown    = errors.New("worker is shutting down")
	ErrGoexit      = errors.New("task function called runtime.Goexit")
	ErrExpired     = errors.New("task has expired")
	ErrUnknownTask = errors.New("unknown task")
	ErrMalformed   = errors.New("malformed task")
	ErrCrashLoop   = errors.New("lost with its worker or connection")
)

// ErrTasksRunning means that a stop ended while functions were still running.
var ErrTasksRunning = errors.New("tasks are still running")

// New returns an error with its own text that also Is another.
func New(text string, is error) error { return &sentinel{text, is} }

type sentinel struct {
	text string
	is   error
}

func (e *sentinel) Error() string { return e.text }
func (e *sentinel) Unwrap() error { return e.is }

// EndedBefore returns the outcome of something whose ctx ended. It quotes the cause and does not wrap it, because the
// cause may be any error, even one that Is another outcome.
func EndedBefore(outcome error, ctx context.Context) error {
	err := ctx.Err()
	if cause := context.Cause(ctx); cause != err {
		return fmt.Errorf("%w: %w (%v)", outcome, err, cause)
	}
	return fmt.Errorf("%w: %w", outcome, err)
}
