// Package broker is the seam between dispatcher and message brokers.
//
// A broker adapter implements [Broker], [Session], [Consumer] and [Settler] and passes the suite in broker/brokertest.
// It imports this package and never the root. The root imports this package; it knows broker/rabbitmq only as the
// default. docs/adr/0002-broker-seam.md explains why the seam is cut here.
//
// # Who does what
//
// A session is one live connection. It never reconnects: it dies with a reason ([Session.Err]), and the supervisor
// (internal/link) opens the next one. Everything that a session handed out dies with it, so no delivery is ever settled
// on a connection other than its own. With RabbitMQ a delivery tag is only a number of its channel, and acknowledging
// it elsewhere would settle another message.
//
// # Rules for every method
//
//   - It is safe for use by many goroutines at once.
//   - It returns within a bounded time after its ctx ends, even if the peer does not answer. Close, Stop and the
//     settling methods that take no ctx never wait for the peer longer than their documentation says.
//   - After the session has died, it returns an error that Is [ErrSessionLost]. This includes Stop and Close of the
//     session's consumers. Session.Close returns nil.
//   - If the broker cannot do something, [Capabilities] says so and the method returns [errors.ErrUnsupported]. It
//     never ignores a request silently.
//   - It does not call user code, except the done function of [Session.Publish].
package broker

import (
	"context"
	"time"
)

// Broker opens sessions to one message broker. The user makes a Broker once and may give it to several servers. It
// holds no connection of its own.
type Broker interface {
	// Open makes one session. It dials once (all the addresses it knows, in one round) and does not retry; the caller
	// does. It blocks until the session is ready or ctx has ended. An error that Is [ErrPermanent] means that trying
	// again cannot help, for instance because an address does not parse. Every other error may be temporary.
	Open(ctx context.Context) (Session, error)
}

// Volatile is implemented by a [Broker] that keeps its messages in the memory of this process. A server that is closed
// calls Stranded and logs the result. A wrapper around such a broker should implement it too.
type Volatile interface {
	// Stranded returns the number of messages, delayed ones included, that wait where no session consumes, and the
	// number of dead letters. While any session is open it does not count dead letters, since they can still be read.
	// It never blocks.
	Stranded() (messages, dead int)
}

// Session is one live connection to a broker. It dies once: by Close, by the peer or by a lost link. Done is then
// closed.
type Session interface {
	// Capabilities returns what this broker, at the version that answered, can do. It is constant over the session's
	// life.
	Capabilities() Capabilities

	// Declare declares the parts of t: first exchanges, then queues, then bindings. Declaring something that exists
	// with the same properties succeeds and changes nothing. It blocks for one round trip or more. If something exists
	// with other properties, or a permission is missing, the error Is [ErrRejected] and names the thing; earlier
	// declarations stay. The session survives a refused declaration.
	Declare(ctx context.Context, t Topology) error

	// Publish writes msgs in order and returns when all are written or have failed. Messages to different exchanges may
	// overtake each other. It blocks only for the write, for a broker that blocks publishers, and while the session has
	// as many unconfirmed messages as it may have (its window).
	//
	// done is called exactly once for every message, with its index in msgs, in any order: on a goroutine of the
	// session or, before Publish returns, on the caller's. It must not block and must not call the session. Its err is
	// one of:
	//
	//   - nil: the broker has confirmed the message and it is in at least one queue (with NotBefore: it is stored);
	//   - an error that Is [ErrNotSent]: nothing of it was written, and publishing again cannot duplicate it;
	//   - an error that Is [ErrRejected]: the broker refused it. This includes [ErrUnroutable], [ErrTooLarge] and an
	//     exchange that does not exist;
	//   - an error that Is [ErrUnconfirmed]: it was written, and the session died before the broker answered; or the
	//     broker refused responsibility ([ErrNacked]); or it refused another message and did not report the fate of
	//     this one ([ErrProtocol]).
	//
	// ctx bounds the caller's wait, also for the outcome. If it ends after the write, the message stays in flight and
	// done is still called, at the latest when the session dies. But the message gives up its place in the window and
	// its ID, Close does not wait for it, and Status counts it. The caller must report it as unconfirmed itself.
	//
	// Message.ID identifies a message among those to one exchange and key that callers wait for. A second publish of
	// the same ID waits, within ctx, for the outcome of the first, and then has its own. An empty ID is refused with
	// ErrRejected. Bodies and headers are not copied: the caller must not change them after the call.
	Publish(ctx context.Context, msgs []Message, done func(i int, err error))

	// Consume starts a consumer of an existing queue. If there is none, the error is [ErrQueueGone].
	Consume(ctx context.Context, o ConsumeOptions) (Consumer, error)

	// TryGet takes up to max messages that are ready now, oldest first, without waiting for more. Finding none is not
	// an error. If it returns fewer than max, no more were ready, unless ctx has ended. The messages are settled like
	// every delivery, and given back when the session dies. If there is no such queue, the error is [ErrQueueGone].
	//
	// If all the messages of an earlier TryGet of this session were settled before, TryGet sees them as settled:
	// released messages are found again. The same holds for Purge, and after a moment for Inspect.
	TryGet(ctx context.Context, queue string, max int) ([]Delivery, error)

	// Inspect counts the messages and consumers of a queue. If there is no such queue, the error is [ErrQueueGone].
	Inspect(ctx context.Context, queue string) (QueueInfo, error)

	// Purge removes the messages that are ready, not those handed out, and returns their number. If there is no such
	// queue, the error is [ErrQueueGone].
	Purge(ctx context.Context, queue string) (int, error)

	// Delete removes a queue with its messages and bindings. Its consumers end with [ErrQueueGone]. Deleting a queue
	// that does not exist succeeds.
	Delete(ctx context.Context, queue string) error

	// Blocked reports whether the broker blocks publishers now, and why in the broker's words. Publishing waits
	// meanwhile; everything else goes on. Blocked itself never blocks.
	Blocked() (reason string, blocked bool)

	// Status describes the session's health, for people. It never blocks.
	Status() Status

	// Done is closed when the session is dead and every done function has returned. Err is set, and consumers end,
	// before that.
	Done() <-chan struct{}

	// Err returns nil while the session lives, and then the reason, which Is [ErrSessionLost]. After Close it also Is
	// [ErrClosed].
	Err() error

	// Close ends the session. It waits, at most until ctx ends, for settlements and for messages whose callers still
	// wait, and then cuts the connection. Consumers end, and the broker requeues their unsettled deliveries. Calling it
	// twice is safe: the second call waits for the first. The error reports what could not be handed over in time. The
	// session is dead even if Close returns an error.
	Close(ctx context.Context) error
}

// ConsumeOptions describes a consumer.
type ConsumeOptions struct {
	Queue string // an existing queue

	// Name of the consumer, shown by the broker's tools; "" = the broker makes one. Taken in this session: ErrRejected.
	Tag string

	// Prefetch is the largest number of deliveries that may be handed out and not yet settled: 1 to 65,535, the 16 bits
	// of AMQP's basic.qos.
	Prefetch int

	// MaxPrefetch is the maximum of SetPrefetch, and the capacity of the channel of deliveries: Prefetch to 65,535.
	// 0 = Prefetch.
	MaxPrefetch int

	// AckEach makes the session write each ack at once. Otherwise an ack may wait some milliseconds for others.
	AckEach bool
}

// Consumer receives the deliveries of one queue.
type Consumer interface {
	// Deliveries returns the channel of deliveries, always the same one, with capacity MaxPrefetch. The session never
	// blocks on it: it has room for all deliveries that were handed out and not received. It is closed when the
	// consumer is over. What a broker without ExactLosses had handed out before the consumer was lost may still be in
	// it, so that the receiver knows: its Lost is closed.
	Deliveries() <-chan Delivery

	// SetPrefetch changes how many deliveries may be unsettled, from 0, a pause, to the MaxPrefetch of ConsumeOptions.
	// Deliveries that are already out are not taken back. After n = 0 was accepted, all of them are in the channel or
	// received, and none is on its way. A consumer that began with a Prefetch of 1 keeps the order of the queue, for
	// which fewer than n may be handed out, though not none.
	SetPrefetch(ctx context.Context, n int) error

	// Stop ends the consumer gracefully. No more deliveries come, those in the channel are given back untouched and
	// uncharged, and the channel is closed. Received deliveries can still be settled, as long as the session lives. Err
	// is nil afterwards. Calling it twice is safe. If ctx ends first, Stop returns its error, and the consumer still
	// ends.
	Stop(ctx context.Context) error

	// Close ends the consumer and its deliveries. The broker requeues unsettled deliveries (and charges them, see
	// Delivery.Losses); settling them later returns [ErrDeliveryLost]. Acks that were handed over are flushed first.
	// After Stop it only ends the deliveries. Calling it twice is safe.
	Close(ctx context.Context) error

	// Done is closed when the consumer is over, after Deliveries was closed.
	Done() <-chan struct{}

	// Err returns nil while the consumer lives and after Stop or Close. Otherwise it Is [ErrQueueGone] (deleted),
	// [ErrConsumerLost] (the session lives on, consume again) or [ErrSessionLost].
	Err() error
}

// Capabilities describes what a broker can do. The zero value can do only what every broker must.
type Capabilities struct {
	// Delay: Settler.Retry takes a delay above 0, and Publish a Message.NotBefore. Without it they return
	// errors.ErrUnsupported.
	Delay bool
	// ConsumerTimeout is the time after which the broker takes an unsettled delivery away from a live consumer and
	// gives it to another. It is the broker's default, not its operator's setting; 0 = never.
	ConsumerTimeout time.Duration
	// Fanout: exchanges of kind Fanout can be declared.
	Fanout bool
	// Ephemeral: queues that live and die with the session can be declared.
	Ephemeral bool
	// KeepsPlace: messages released to a queue that this session has declared return to their old places, in whatever
	// order they are released. Without it they come again in the order of their release. It does not apply to
	// [Undeliverable].
	KeepsPlace bool
	// ExactLosses: Delivery.Losses counts every loss, and only of received deliveries. Without it the count may be too
	// low, and may include deliveries that were prefetched and never received, since the broker cannot know.
	ExactLosses bool
}

// Status describes the health of a session. The zero value means that nothing is wrong.
type Status struct {
	// Node is where the session is connected, without credentials; "" = not applicable, as for a broker in the process
	// itself.
	Node string
	// Unanswered is the number of published messages that the broker has not answered and whose callers have stopped
	// waiting.
	Unanswered int
	// Unreadable counts, by queue, the messages that were handed out with [Message].Unreadable set. Nil if there were
	// none.
	Unreadable map[string]int
	// Channels says why the session cannot have another consumer; "" = it can.
	Channels string
	// Delays says why delayed messages may be late; "" = no cause is known.
	Delays string
}

// QueueInfo is what Inspect returns about a queue. A number that the broker does not report is -1.
type QueueInfo struct {
	Ready     int // messages waiting to be handed out
	Unsettled int // messages handed out and not settled
	// Consumers is the number of consumers over all sessions. Those that are paused do not count, and those of other
	// sessions may not count while they can receive nothing.
	Consumers int
}
