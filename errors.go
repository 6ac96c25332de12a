package dispatcher

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
	"github.com/seed-416683c9/dispatcher/internal/wire"
)

//lint:file-ignore ST1005 The texts of gofort/dispatcher are kept to the letter: programs compare them.

// The outcome of a publish: nil = confirmed and in a queue; otherwise the error Is exactly one of these four. The answer
// to "may I publish it again?" is: yes; not before something changes; it may run twice; no, it would run twice.
var (
	// ErrNotSent: the task is certainly in no queue. Publishing again is safe, after a pause; of no use if it also Is [ErrServerClosed].
	ErrNotSent = broker.ErrNotSent
	// ErrRejected: refused by the broker or by a check before it; the same again is refused again.
	ErrRejected = broker.ErrRejected
	// ErrUnconfirmed: sent, and no answer came in time, or one that proves nothing ([ErrNacked]). The task may run or not; publishing
	// again may run it twice.
	ErrUnconfirmed = broker.ErrUnconfirmed
	// ErrInOutbox: kept in ServerConfig.Outbox, as safely as that keeps things, and sent as soon as it can be. Do not publish it
	// again.
	ErrInOutbox = errors.New("kept in the outbox; do not publish again")
)

// Why a publish was refused or not sent. Each Is one of the outcomes above.
var (
	// ErrUnroutable: no queue is bound to the routing key. Is ErrRejected.
	ErrUnroutable = broker.ErrUnroutable
	// ErrNacked: the broker refused responsibility, as it does when a queue is full or its node is down. Is ErrUnconfirmed: another
	// queue of the same routing key may have the task.
	ErrNacked = broker.ErrNacked
	// ErrUnavailable: the queue exists, or may exist, but its node is down or does not answer. From Publish the error also Is ErrNotSent. Also from NewServer, NewWorker
	// and Worker.Start.
	ErrUnavailable = broker.ErrUnavailable
	// ErrTooLarge: the encoded task is larger than ServerConfig.MaxBodyBytes or the broker's limit, or its headers are larger than
	// Task.Headers allows. Is ErrRejected.
	ErrTooLarge = broker.ErrTooLarge
	// ErrTaskName: Task.Name is empty. Is ErrRejected.
	ErrTaskName error = &sentinel{"Task name was not passed", ErrRejected}
	// ErrDisconnected: there is no connection now. From Publish it Is ErrNotSent. Also from NewWorker.
	ErrDisconnected error = &sentinel{"Service is disconnected", ErrNotSent}
	// ErrServerClosed: the server was closed, or has given up its connection for good: then the error that wraps it says since when and
	// why. Is ErrNotSent.
	ErrServerClosed error = &sentinel{"server is closed", ErrNotSent}
	// ErrOutboxFull: the task has to go to ServerConfig.Outbox, and there is no room for it. Is ErrNotSent.
	ErrOutboxFull error = &sentinel{"outbox is full", ErrNotSent}
)

// From NewServer: what is wrong with its configuration. Several problems come joined, one a line.
var (
	ErrExchangeRequired          = errors.New("Exchange parameter is required")
	ErrDefaultRoutingKeyRequired = errors.New("DefaultRoutingKey parameter is required")
	ErrEmptyQueueName            = errors.New("Empty queue name passed")
	ErrEmptyBindingKey           = errors.New("Empty binding key passed")
)

// From NewWorker, GetWorkerByName and Worker.Start.
var (
	ErrWorkerNameRequired  = errors.New("Worker name is required parameter")
	ErrWorkerQueueRequired = errors.New("Worker queue is required parameter")
	ErrWorkerExists        = errors.New("Worker with the same name already exists")
	ErrWorkerNotFound      = errors.New("Worker not found")
	// ErrWorkerDisconnected: Start was called while there is no connection; start it again later.
	ErrWorkerDisconnected = errors.New("Can't start worker, because you are not connected to AMQP")
	// ErrWorkerStarted: Start was called on a worker that runs, or has not finished closing.
	ErrWorkerStarted = errors.New("worker is already started")
)

// Why an attempt of a task ended, or was never made. ErrTimeout and ErrShutdown are found with context.Cause of the task's
// context; all are told in the log and in the error header of dead letters.
var (
	// ErrTimeout: the task's timeout has passed. Is context.DeadlineExceeded.
	ErrTimeout error = &sentinel{"task timeout", context.DeadlineExceeded}
	// ErrShutdown: the drain deadline has passed and the worker stops. Also from a Start that Close came in between.
	ErrShutdown = errors.New("worker is shutting down")
	// ErrGoexit: the function ended its goroutine with runtime.Goexit. A failed attempt.
	ErrGoexit = errors.New("task function called runtime.Goexit")
	// ErrExpired: Task.ExpiresAt had passed before the task started.
	ErrExpired = errors.New("task has expired")
	// ErrCrashLoop: the task was lost again and again while it ran alone: it may end the process that runs it.
	ErrCrashLoop = verdict.ErrCrashLoop
	// ErrUnknownTask: the worker has no function of this name.
	ErrUnknownTask = errors.New("unknown task")
	// ErrMalformed: the body is not a task.
	ErrMalformed = wire.ErrMalformed
)

// From the methods of DeadLetters.
var (
	// ErrDeadLetterNotFound: no dead letter of the queue has this uuid.
	ErrDeadLetterNotFound = errors.New("dead letter not found")
	// ErrQueueGone: the queue of dead letters does not exist: no worker of that queue was ever made, or somebody has deleted it.
	ErrQueueGone = broker.ErrQueueGone
)

// ErrTasksRunning: Shutdown ended while task functions were still running. The error that wraps it says how many. Their messages
// were not settled: the broker delivers them again, so they will run a second time. Only those of calls that had been
// abandoned, counted apart, are dead letters already.
var ErrTasksRunning = errors.New("tasks are still running")

// ErrOutboxNotEmpty: Shutdown ended while tasks were waiting in ServerConfig.Outbox, which is no [DurableOutbox] or cannot count. The error that wraps it says how many. Those
// in a [MemoryOutbox] end with the process; a server that is given the same outbox sends them.
var ErrOutboxNotEmpty = errors.New("tasks are left in the outbox")

// ArgumentError says which argument of a task does not fit: its declared type is unknown, its value is not of that
// type, or the function's parameter cannot hold it without loss. From Publish it also Is ErrRejected; at a worker it
// makes the task a dead letter with the reason bad_arguments.
type ArgumentError struct {
	Task     string // name of the task
	Position int    // index in Task.Args, from 0; -1: the number of arguments is wrong
	Want     string // what would fit, for instance "int8"
	Got      string // what was found, for instance "300"; long values are cut
}

func (e *ArgumentError) Error() string {
	if e.Position < 0 {
		return fmt.Sprintf("want %s, got %s", e.Want, e.Got)
	}
	return fmt.Sprintf("argument %d: want %s, got %s", e.Position, e.Want, e.Got)
}

// PanicError is the failure of an attempt whose function panicked. It unwraps to the value if that is an error.
type PanicError struct {
	Value any    // what was passed to panic
	Stack []byte // function, file and line of each frame, from the one that panicked on; without the library's and without argument values
}

func (e *PanicError) Error() string { return fmt.Sprintf("task panicked: %v", e.Value) }

func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// sentinel is an error with a text of its own that also Is another error.
type sentinel struct {
	text string
	is   error
}

func (e *sentinel) Error() string { return e.text }
func (e *sentinel) Unwrap() error { return e.is }
