package broker

import (
	"context"
	"strings"
	"time"
)

// Message is what travels. Every message is durable: it survives a restart of the broker as its queue does.
//
// Values in a message that was received come from the wire and prove nothing: check before use.
type Message struct {
	Exchange   string // where it is published; "" = the default exchange, which routes by queue name
	RoutingKey string // at most 255 bytes, like every name here (an AMQP short string has one byte of length)

	ID            string // identity of the message; unique among those in flight of one session
	Type          string // the task's name
	ContentType   string
	CorrelationID string
	ReplyTo       string
	Timestamp     time.Time // zero = none; brokers keep whole seconds

	// Headers is read only once published or received: deliveries of the same message may share it. It carries string, bool, int64, float64, []byte, time.Time, nil, and []any and map[string]any of these. A
	// received message may hold other types, left as the broker's client made them.
	Headers map[string]any

	Body []byte
}

// Forward returns the message that stands for m when it is published again, as a retry or a dead letter: body,
// properties and a copy of the headers, without the headers that would make the broker do something else with the copy.
//
// A copied CC or BCC header routes the copy to all those keys again, so every retry would multiply the task; a
// republished x-death makes RabbitMQ up to 3.13 drop the message as a cycle; the counters x-delivery-count and
// x-acquired-count are the broker's own (all measured on 3.10.8).
func (m Message) Forward() Message {
	headers := make(map[string]any, len(m.Headers)+8)
	for k, v := range m.Headers {
		if !brokerOwned(k) {
			headers[k] = v
		}
	}
	m.Headers = headers
	return m
}

// brokerOwned reports whether a header speaks to the broker or was written by it.
func brokerOwned(name string) bool {
	switch name {
	case "CC", "BCC", "x-delivery-count", "x-acquired-count":
		return true
	}
	return strings.HasPrefix(name, "x-death") || strings.HasPrefix(name, "x-first-death-") || strings.HasPrefix(name, "x-last-death-")
}

// Delivery is one message handed to a consumer, to be settled exactly once.
type Delivery struct {
	Message
	Queue string // where it was taken from

	// Redelivered: the message had been handed out before, perhaps only into a channel where nobody looked at it.
	Redelivered bool

	// Losses is how many times the message was handed out and its consumer or session ended before it was settled. It
	// raises suspicion and proves nothing, see Capabilities.ExactLosses. Release and Stop are never counted.
	Losses int

	Settler
}

// Settler ends a delivery. A settled delivery answers every further settling with [ErrSettled]; one whose consumer or
// session ended answers with [ErrDeliveryLost] and touches nothing else: the broker hands that message out again, and a
// settlement from the past must never reach its successor (fencing).
type Settler interface {
	// Ack says that the work is done. It never blocks; nil = handed to the session, which may send several at once and
	// may still lose it, and then the message is delivered again.
	Ack() error

	// Release gives the message back untouched, to about the place it had, without charging it a loss. It never blocks; nil as
	// for Ack.
	Release() error

	// Retry publishes m to the queue this delivery came from, due after delay, and then acks the delivery. It blocks until
	// m is confirmed. m.Exchange and m.RoutingKey are not used, and not what the copy arrives with: a retry returns to its queue and to no other that is
	// bound to the same key. An error leaves the delivery open, to be settled again in any way. It is not atomic: a crash
	// between the two steps leaves both messages, never neither. While it is under way, other settlings answer ErrSettled. A delay
	// below 0 counts as 0; never early. Errors are those of a publish: ErrUnroutable if the queue was deleted.
	Retry(ctx context.Context, m Message, delay time.Duration) error

	// DeadLetter publishes m to the queue <queue>.dead and then acks the delivery; otherwise like Retry. If that queue
	// does not exist the error Is [ErrUnroutable] and the delivery stays open.
	DeadLetter(ctx context.Context, m Message) error

	// Lost is closed when the delivery can no longer be settled because its consumer or session ended. It is not closed by
	// settling.
	Lost() <-chan struct{}
}

// DeadSuffix is appended to a queue's name to name the queue of its dead letters.
const DeadSuffix = ".dead"
