package broker

import (
	"context"
	"strings"
	"time"
)

// Message is a message to publish, or one that was received. Every message is durable: it survives a restart of the
// broker as its queue does.
//
// All values of a received message come from the wire and are untrusted. Check them before use.
type Message struct {
	Exchange   string // where it is published; "" = the default exchange, which routes by queue name
	RoutingKey string // at most 255 bytes, like every name here (an AMQP short string has one byte of length)

	ID              string // identity of the message; Session.Publish says among which it is unique
	Type            string // the task's name
	ContentType     string
	ContentEncoding string
	AppID           string // the program that made it
	CorrelationID   string
	ReplyTo         string
	Priority        uint8     // 0 = none
	Timestamp       time.Time // zero = none; brokers keep whole seconds

	// Headers must not be changed once published or received: deliveries of the same message may share the map. It
	// holds string, bool, int64, finite float64, []byte, time.Time, nil, and []any and map[string]any of these. A
	// received message may hold other types, as the broker's client made them. A time has whole seconds and is in UTC.
	Headers map[string]any

	Body []byte

	// NotBefore is when the message may enter its queues: never earlier, slightly later. Zero or past = at once. It
	// needs Capabilities.Delay, otherwise Publish returns [errors.ErrUnsupported]; more than [MaxDelay] ahead is
	// ErrRejected.
	//
	// The message's queues are decided when it is due, so its confirmation means only that the broker has stored it. If
	// there is no queue then, it goes to the queue [Undeliverable]. It arrives with the Exchange and RoutingKey that it
	// was published with. NotBefore is not set in received messages, and Settler ignores it.
	NotBefore time.Time

	// Expiration and UserID are set in received messages only: how many milliseconds the message could wait in its
	// queue, and the broker's user who published it. Publish ignores them. Forward turns them into headers.
	Expiration, UserID string

	// Unreadable says why the headers of a received message could not be read; "" = they could. Headers then holds at
	// most [RawHeaders], and other properties may be missing too. Publish ignores it.
	Unreadable string
}

// RawHeaders names the header in which adapters put headers that could not be read: a []byte as they came over the
// wire, perhaps cut short.
const RawHeaders = "x-dispatcher-raw-headers"

// The headers in which a copy keeps, for a person, values that it cannot have as properties. See [Message.Forward].
const (
	ExpirationHeader = "x-dispatcher-expiration"
	UserIDHeader     = "x-dispatcher-user-id"
)

// MaxDelay is the longest delay that every broker with [Capabilities.Delay] takes: a leap year.
const MaxDelay = 366 * 24 * time.Hour

// Forward returns the message that replaces m when it is published again, as a retry or a dead letter. It has m's body,
// properties and a copy of its headers, except the headers that would make the broker treat the copy differently.
//
// A copied CC or BCC header routes the copy to all those keys again, so every retry would multiply the task. A
// republished x-death makes RabbitMQ up to 3.13 drop the message as a cycle. The counters x-delivery-count and
// x-acquired-count are the broker's own (all measured on 3.10.8).
//
// With its expiration the copy would end too early: among the dead letters, or on RabbitMQ during a delay. RabbitMQ
// also drops the expiration when it dead-letters a message. The user id is that of the connection that published the
// message, and RabbitMQ closes the channel of anybody else who sends it. Both become headers.
func (m Message) Forward() Message {
	headers := make(map[string]any, len(m.Headers)+8)
	for k, v := range m.Headers {
		if !brokerOwned(k) {
			headers[k] = v
		}
	}
	if m.Expiration != "" {
		headers[ExpirationHeader] = m.Expiration
	}
	if m.UserID != "" {
		headers[UserIDHeader] = m.UserID
	}
	m.Headers, m.NotBefore, m.Expiration, m.UserID, m.Unreadable = headers, time.Time{}, "", "", ""
	return m
}

// brokerOwned reports whether a header instructs the broker or was written by it.
func brokerOwned(name string) bool {
	switch name {
	case "CC", "BCC", "x-delivery-count", "x-acquired-count":
		return true
	}
	return strings.HasPrefix(name, "x-death") ||
		strings.HasPrefix(name, "x-first-death-") ||
		strings.HasPrefix(name, "x-last-death-")
}

// Delivery is one message handed to a consumer. It is settled exactly once.
type Delivery struct {
	Message
	Queue string // where it was taken from

	// Redelivered: the message had been handed out before, perhaps only into a channel from which nobody received it.
	Redelivered bool

	// Losses is how many times the message was handed out and its consumer or session ended before it was settled. It
	// raises suspicion and proves nothing, see Capabilities.ExactLosses. Release and Stop are never counted.
	Losses int

	Settler
}

// Settler ends a delivery. Settling a settled delivery again returns [ErrSettled]. If the delivery's consumer or
// session has ended, settling returns [ErrDeliveryLost] and does nothing else: the broker hands that message out again,
// and a late settlement must never reach its successor (fencing).
type Settler interface {
	// Ack reports that the work is done. It never blocks. nil means that the ack was handed to the session, which may
	// send several at once and may still lose it; then the message is delivered again.
	Ack() error

	// Release gives the message back untouched, to about its old place, without charging it a loss. It never blocks.
	// nil means the same as for Ack.
	Release() error

	// Retry publishes m to the queue this delivery belongs to, due after delay, and then acks the delivery. That queue
	// is the one it came from; for a delivery from <queue>.suspects it is <queue>. Retry blocks until m is confirmed.
	//
	// m.Exchange, m.RoutingKey and m.NotBefore are ignored: a retry returns to its queue and to no other that is bound
	// to the same key, and arrives with an empty Exchange and the queue's name as RoutingKey.
	//
	// After an error the delivery is open and can be settled again in any way. Retry is not atomic: a crash between the
	// two steps leaves both messages, never neither. While it is under way, other settlings return ErrSettled.
	//
	// A delay below 0 counts as 0. The retry is never early. A delay above [MaxDelay] is ErrRejected. Errors are those
	// of a publish: ErrUnroutable if the queue was deleted. If it is deleted later, m goes to [Undeliverable] when it
	// is due.
	Retry(ctx context.Context, m Message, delay time.Duration) error

	// Suspect publishes m to the queue <queue>.suspects of the queue this delivery belongs to, and then acks the
	// delivery. Otherwise it is like Retry without a delay. If that queue does not exist, the error Is [ErrUnroutable]
	// and the delivery stays open.
	Suspect(ctx context.Context, m Message) error

	// DeadLetter publishes m to the queue <queue>.dead of the queue this delivery belongs to, and then acks the
	// delivery. Otherwise it is like Suspect.
	DeadLetter(ctx context.Context, m Message) error

	// Lost returns a channel that is closed when the delivery can no longer be settled because its consumer or session
	// ended. Settling does not close it.
	Lost() <-chan struct{}
}

// The suffixes of the queues that belong to a queue.
const (
	DeadSuffix = ".dead" // its dead letters
	// Messages whose consumer was lost more than once; in it, Delivery.Redelivered must be false unless a message was
	// handed out.
	SuspectsSuffix = ".suspects"
)

// Owner returns the queue that a queue belongs to: <queue> for <queue>.suspects, and any other queue itself.
func Owner(queue string) string { return strings.TrimSuffix(queue, SuspectsSuffix) }

// Undeliverable is the queue for delayed messages that no queue takes when they are due. It exists at the latest when
// the first one arrives.
const Undeliverable = "dispatcher.undeliverable"
