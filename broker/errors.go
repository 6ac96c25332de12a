package broker

import (
	"errors"
	"fmt"
)

// The outcome of a publish is exactly one of nil, ErrNotSent, ErrRejected and ErrUnconfirmed, found with errors.Is.
var (
	// ErrNotSent: the message is certainly in no queue, because nothing was written, or the broker returned or ignored
	// it. Publishing again cannot duplicate it.
	ErrNotSent = errors.New("not sent")
	// ErrRejected: the broker, or a check before it, refused the message. It will be refused again until the cause is
	// fixed.
	ErrRejected = errors.New("rejected")
	// ErrUnconfirmed: the message was written, and no answer came or one that proves nothing. The message may be in its
	// queue or not, and publishing it again may duplicate it.
	ErrUnconfirmed = errors.New("unconfirmed")

	// ErrNacked: the broker refused responsibility for the message, as it does when a queue is full or its node is
	// down. It Is ErrUnconfirmed: another queue of the same key may have the message, and so may a queue that failed
	// after it took it.
	ErrNacked = fmt.Errorf("refused by a queue, which may be full or unavailable: %w", ErrUnconfirmed)

	// ErrUnroutable: no queue is bound to the routing key. It Is ErrRejected.
	ErrUnroutable error = refusal("no queue is bound to this routing key")
	// ErrExchangeGone: the exchange does not exist. It Is ErrRejected.
	ErrExchangeGone = fmt.Errorf("exchange does not exist: %w", ErrRejected)
	// ErrTooLarge: the body is larger than the broker, or a check before it, allows. It Is ErrRejected.
	ErrTooLarge error = refusal("task is too large")
	// ErrHeadersTooLarge: a receiver could not read these headers: they have too many bytes, too many entries in one
	// table, or are nested too deeply. It Is ErrRejected.
	ErrHeadersTooLarge = fmt.Errorf("headers are too large: %w", ErrRejected)
)

// Errors of connections.
var (
	// ErrPermanent is returned by Open: trying again cannot help until the cause is fixed.
	ErrPermanent = errors.New("permanent")
	// ErrSessionLost: the session is dead, and Session.Err returns the reason. The supervisor opens the next one.
	ErrSessionLost = errors.New("session lost")
	// ErrClosed: the session or consumer was ended by its own Close.
	ErrClosed = errors.New("closed")
	// ErrProtocol: the broker ended the connection or a channel over something that was sent. Session.Err returns it.
	// Publish returns it together with ErrUnconfirmed: the cause may be this message or another one in flight.
	ErrProtocol = errors.New("ended by the broker because of what was sent")
)

// refusal is an ErrRejected with a text of its own. Programs may compare the text of ErrTooLarge.
type refusal string

func (r refusal) Error() string { return string(r) }
func (refusal) Unwrap() error   { return ErrRejected }

// Errors of queues and consumers.
var (
	// ErrQueueGone: the queue does not exist, or was deleted under its consumer.
	ErrQueueGone = errors.New("queue does not exist")
	// ErrConsumerLost: the broker ended the consumer; its session lives on.
	ErrConsumerLost = errors.New("consumer lost")
	// ErrUnavailable: the queue exists, or may exist, but cannot be used now: its node is down, or does not answer.
	// Declare, Consume, Inspect, TryGet, Purge and Delete return it. Publish returns it together with ErrNotSent.
	ErrUnavailable = errors.New("queue is not available now")
	// ErrLocked: another session holds the ephemeral queue.
	ErrLocked = errors.New("locked by another session")
)

// Errors of settling.
var (
	// ErrSettled: this delivery was settled before. Nothing was done.
	ErrSettled = errors.New("delivery already settled")
	// ErrDeliveryLost: the consumer or session of this delivery ended first. Nothing was done, and the broker hands the
	// message out again.
	ErrDeliveryLost = errors.New("delivery lost")
)
