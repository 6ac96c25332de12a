package dispatcher

import (
	"errors"
	"fmt"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/fault"
)

//lint:file-ignore ST1005 The texts of gofort/dispatcher are kept to the letter: programs compare them.

// The outcome of a publish. nil means confirmed and in a queue; otherwise the error Is exactly one of these four. They
// answer "may I publish it again?" in this order: yes; no, it will be refused again until the cause is fixed; it may
// run twice; no, it would run twice.
var (
	// ErrNotSent means that the task is certainly in no queue. Publishing again is safe, after a pause. It is useless
	// if the error also Is [ErrServerClosed]: use a new server.
	ErrNotSent = broker.ErrNotSent
	// ErrRejected means that the broker, or a check before it, refused the task. It will be refused again until the
	// cause is fixed.
	ErrRejected = broker.ErrRejected
	// ErrUnconfirmed means that the task was sent, and no answer came in time, or an answer that proves nothing
	// ([ErrNacked]). The task may run or not. Publishing it again may run it twice.
	ErrUnconfirmed = broker.ErrUnconfirmed
	// ErrInOutbox means that the task is in ServerConfig.Outbox and will be sent as soon as possible. It is as safe as
	// that outbox. Do not publish it again.
	ErrInOutbox = fault.ErrInOutbox
)

// Reasons why a publish was refused or not sent. Each Is one of the outcomes above.
var (
	// ErrUnroutable means that no queue is bound to the routing key. It Is ErrRejected.
	ErrUnroutable = broker.ErrUnroutable
	// ErrNacked means that the broker refused responsibility, as it does when a queue is full or its node is down. It
	// Is ErrUnconfirmed: another queue of the same routing key may have the task.
	ErrNacked = broker.ErrNacked
	// ErrUnavailable means that the queue exists, or may exist, but its node is down or does not answer. From Publish
	// the error also Is ErrNotSent. NewServer, NewWorker and Worker.Start return it too.
	ErrUnavailable = broker.ErrUnavailable
	// ErrTooLarge means that the encoded task is larger than ServerConfig.MaxBodyBytes or the broker's limit, or that
	// its headers are larger than Task.Headers allows. It Is ErrRejected.
	ErrTooLarge = broker.ErrTooLarge
	// ErrTaskName means that Task.Name is empty. It Is ErrRejected.
	ErrTaskName = fault.New("Task name was not passed", ErrRejected)
	// ErrDisconnected means that there is no connection now. From Publish it Is ErrNotSent. NewWorker returns it too.
	ErrDisconnected = fault.ErrDisconnected
	// ErrServerClosed means that the server was closed, or has given up its connection for good. In the second case the
	// text of the error says since when and why. It Is ErrNotSent.
	ErrServerClosed = fault.ErrServerClosed
	// ErrOutboxFull means that the task had to go to ServerConfig.Outbox, which has no room for it. It Is ErrNotSent.
	ErrOutboxFull = fault.New("outbox is full", ErrNotSent)
)

// Errors of NewServer about its configuration. Several problems are joined, one a line.
var (
	ErrExchangeRequired          = errors.New("Exchange parameter is required")
	ErrDefaultRoutingKeyRequired = errors.New("DefaultRoutingKey parameter is required")
	ErrEmptyQueueName            = errors.New("Empty queue name passed")
	ErrEmptyBindingKey           = errors.New("Empty binding key passed")
)

// Errors of NewWorker, GetWorkerByName and Worker.Start.
var (
	ErrWorkerNameRequired  = errors.New("Worker name is required parameter")
	ErrWorkerQueueRequired = errors.New("Worker queue is required parameter")
	ErrWorkerExists        = errors.New("Worker with the same name already exists")
	ErrWorkerNotFound      = errors.New("Worker not found")
	// ErrWorkerDisconnected means that Start was called while there is no connection. Start the worker again later.
	ErrWorkerDisconnected = errors.New("Can't start worker, because you are not connected to AMQP")
	// ErrWorkerStarted means that Start was called on a worker that runs, or has not finished closing.
	ErrWorkerStarted = errors.New("worker is already started")
)

// Reasons why an attempt of a task ended, or was never made. context.Cause of the task's context returns ErrTimeout and
// ErrShutdown. Their texts appear in the log and in DeadLetter.Error.
var (
	// ErrTimeout means that the task's timeout has passed. It Is context.DeadlineExceeded.
	ErrTimeout = fault.ErrTimeout
	// ErrShutdown means that the drain deadline has passed and the worker stops. Start returns it too if Close is
	// called meanwhile.
	ErrShutdown = fault.ErrShutdown
	// ErrGoexit means that the function ended its goroutine with runtime.Goexit. The attempt has failed.
	ErrGoexit = fault.ErrGoexit
	// ErrExpired means that Task.ExpiresAt had passed before the task started.
	ErrExpired = fault.ErrExpired
	// ErrCrashLoop means that the task was lost again and again while it ran alone. The task may end the process that
	// runs it.
	ErrCrashLoop = fault.ErrCrashLoop
	// ErrUnknownTask means that the worker has no function of this name.
	ErrUnknownTask = fault.ErrUnknownTask
	// ErrMalformed means that the body is not a task.
	ErrMalformed = fault.ErrMalformed
)

// Errors of the methods of DeadLetters.
var (
	// ErrDeadLetterNotFound means that no dead letter of the queue has this uuid.
	ErrDeadLetterNotFound = errors.New("dead letter not found")
	// ErrQueueGone means that the queue of dead letters does not exist: no worker of that queue was ever made, or the
	// queue was deleted.
	ErrQueueGone = broker.ErrQueueGone
)

// ErrTasksRunning means that Shutdown ended while task functions were still running. The error that wraps it says how
// many. Their messages were not settled: the broker delivers them again, so they will run a second time. Only those of
// abandoned calls, which are counted separately, are dead letters already.
var ErrTasksRunning = fault.ErrTasksRunning

// ErrOutboxNotEmpty means that Shutdown ended while tasks were waiting in ServerConfig.Outbox. The text of the error
// says how many. Another server with the same outbox sends them. Those in a [MemoryOutbox] are lost when the process
// ends. For a [DurableOutbox], Shutdown returns this error only if the outbox cannot count them.
var ErrOutboxNotEmpty = fault.ErrOutboxNotEmpty

// ArgumentError describes the argument of a task that does not fit: its declared type is unknown, its value is not of
// that type, or the function's parameter cannot hold it without loss. From Publish it also Is ErrRejected. At a worker
// it makes the task a dead letter with the reason bad_arguments.
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

// PanicError is the error of an attempt whose function panicked. It unwraps to the value if that is an error.
type PanicError struct {
	Value any // the value passed to panic
	// Function, file and line of each frame, starting at the one that panicked; no frames of the library, no argument
	// values.
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("task panicked: %v", e.Value) }

func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}
