package rabbitmq

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// errOver is returned by waiting helpers when the session died. Their callers return the session's reason instead.
var errOver = errors.New("over")

// errClosed is the reason of a session that was closed.
var errClosed = fmt.Errorf("%w: %w", broker.ErrSessionLost, broker.ErrClosed)

// blockedError reports that a publish waited in vain for a broker that blocks publishers.
type blockedError struct {
	reason string
	err    error
}

func (e *blockedError) Error() string {
	return fmt.Sprintf("the broker blocks publishers (%s): %v", e.reason, e.err)
}

func (e *blockedError) Unwrap() error { return e.err }

// operation is an operation that can be refused: see refused. The permission is the one that RabbitMQ's access control
// requires for it.
type operation struct {
	permission string // for 403
	missing    error  // for 404
}

var (
	declareExchange = operation{"configure permission on the exchange", broker.ErrRejected}
	declareQueue    = operation{"configure permission on the queue", broker.ErrRejected}
	bindQueue       = operation{"write permission on the queue and read permission on the exchange", broker.ErrRejected}
	bindExchange    = operation{
		"write permission on the first exchange and read permission on the second",
		broker.ErrRejected,
	}
	declareDeliver = operation{
		"configure and read permission on the exchange, and write permission on its alternate exchange",
		broker.ErrRejected,
	}
	declareLevel = operation{
		"configure and read permission on the queue, and write permission on the exchange it dead-letters to",
		broker.ErrRejected,
	}
	writeExchange = operation{"write permission on the exchange", broker.ErrExchangeGone}
	readQueue     = operation{"read permission on the queue", broker.ErrQueueGone}
	inspectQueue  = operation{"configure permission on the queue", broker.ErrQueueGone} // required from 4.3 on
	deleteQueue   = operation{"configure permission on the queue", broker.ErrQueueGone}
)

// refused turns the error of a call on a channel of its own into an error of the contract. Each refusal by RabbitMQ
// closes the channel with one of these codes, and the text names the queue or exchange. No error of the client gets
// out: its types are not part of this package's API.
func refused(op operation, err error) error {
	var e *amqp.Error
	if !errors.As(err, &e) {
		return err
	}
	switch text := reply(e); e.Code {
	case amqp.NotFound:
		if absent(e) {
			return fmt.Errorf("%s: %w", text, broker.ErrUnavailable)
		}
		return fmt.Errorf("%s: %w", text, op.missing)
	case amqp.ResourceLocked: // exclusive to another connection
		return fmt.Errorf("%s: %w", text, broker.ErrLocked)
	case amqp.PreconditionFailed: // it exists with other properties
		return fmt.Errorf("%s: %w: delete it or use the same properties", text, broker.ErrRejected)
	case amqp.AccessRefused: // no permission, or a name that belongs to the broker (amq.…)
		return fmt.Errorf("%s: %w: the user needs %s", text, broker.ErrRejected, op.permission)
	case amqp.NotImplemented, amqp.NotAllowed, amqp.CommandInvalid:
		// These close the connection, so the session dies too.
		return fmt.Errorf("%s: %w", text, broker.ErrRejected)
	default: // the channel or connection ended for another reason; trying again may help
		return errors.New(text)
	}
}

// absences are the texts with which RabbitMQ refuses a queue that exists but cannot be used now, also with the code 404
// (rabbit_amqqueue:absent, 3.10 to 4.1). Its node is down, its process ended and does not come back, or it did not
// answer for a minute. From 4.0 on, with Khepri, the last text is the one for a classic queue whose node is down.
var absences = []string{
	"is down or inaccessible",
	"process is stopped by supervisor",
	"has crashed and failed to restart",
	"due to timeout",
	"may be stopping or being demoted",
}

// absent reports whether a 404 is about a queue that exists. The text about a missing queue begins with "no" and its
// name, which may contain anything.
func absent(e *amqp.Error) bool {
	return !strings.HasPrefix(e.Reason, "NOT_FOUND - no ") &&
		slices.ContainsFunc(absences, func(text string) bool { return strings.Contains(e.Reason, text) })
}

// reply returns the reason that the broker gave, or the client in its place.
func reply(e *amqp.Error) string {
	if e.Server {
		return fmt.Sprintf("%d %s", e.Code, e.Reason)
	}
	return e.Reason
}

// dialError explains why a connection could not be opened.
func dialError(a address, err error) error {
	var e *amqp.Error
	fromBroker := errors.As(err, &e) && e.Server
	explained := explain(err)
	if fromBroker || a.scheme != "amqps" {
		return explained
	}
	// With TLS 1.3 a broker refuses a certificate after the client's handshake is done, and the client may then see any
	// error of a lost link.
	return fmt.Errorf(
		"%w (over TLS, the broker may also require a client certificate, or reject the one that was sent)", explained)
}

func explain(err error) error {
	var e *amqp.Error
	switch {
	case !errors.As(err, &e):
		return err
	case errors.Is(err, amqp.ErrCredentials):
		// RabbitMQ gives no reason when user or password are wrong, and the client cannot distinguish that from a lost
		// link.
		return errors.New("the broker ended the connection during login: check user and password")
	case !e.Server:
		return fmt.Errorf("the broker ended the connection while it was being opened: %s", e.Reason)
	case e.Code == amqp.AccessRefused:
		return fmt.Errorf("%s: check user and password, and that the user may use the virtual host", reply(e))
	case e.Code == amqp.NotAllowed && strings.Contains(e.Reason, "vhost"):
		return fmt.Errorf("%s: check the virtual host at the end of the URL", reply(e))
	}
	return errors.New(reply(e))
}

// lost returns the reason of a session whose connection ended.
func lost(c *conn, e *amqp.Error) error {
	switch cause := c.socket.cause.Load(); {
	case cause != nil:
		return fmt.Errorf("%w: %s connection: %w", broker.ErrSessionLost, c.role, *cause)
	case e != nil && e.Server && e.Code >= amqp.FrameError && c.role == "publish":
		return fmt.Errorf("%w: %s connection: %s: %w", broker.ErrSessionLost, c.role, reply(e), broker.ErrProtocol)
	case e != nil:
		return fmt.Errorf("%w: %s connection: %s", broker.ErrSessionLost, c.role, reply(e))
	}
	return fmt.Errorf("%w: %s connection ended", broker.ErrSessionLost, c.role)
}
