// Package broker is the seam between dispatcher and message brokers.
//
// A broker adapter implements [Broker], [Session], [Consumer] and [Settler] and passes the suite in
// broker/brokertest. It imports this package and never the root. The root imports this package and knows no
// transport. docs/adr/0002-broker-seam.md tells why the seam is cut here.
//
// # Who does what
//
// A session is one live connection. It never reconnects: it dies with a reason ([Session.Err]) and the supervisor in
// the root opens the next one. Everything handed out by a session dies with it, so that nothing is ever settled on
// another connection than the one it came from: with RabbitMQ a delivery tag is only a number of its channel, and
// acknowledging it elsewhere settles somebody else's message.
//
// # Rules for every method
//
//   - Safe for use by many goroutines at once.
//   - Returns within a bounded time after its ctx ends, whatever the peer does. Close, Stop and the settling methods
//     that take no ctx never wait for the peer longer than their text says.
//   - After the session died, methods return an error that Is [ErrSessionLost], Stop and Close of its consumers included;
//     Session.Close returns nil.
//   - What the broker cannot do is said by [Capabilities] and answered with [errors.ErrUnsupported], never ignored.
//   - No method calls back into user code except the done function of [Session.Publish].
package broker

import (
	"context"
	"time"
)

// Broker opens sessions to one message broker. A Broker is a value that the user makes once and may give to several
// servers; it holds no connection of its own.
type Broker interface {
	// Open makes one session; it dials once (all the addresses it knows, in one round) and does not retry: that is the
	// caller's. It blocks until the session is ready or ctx has ended. An error that Is [ErrPermanent] says that
	// trying again cannot help, for instance an address that does not parse; every other error may pass.
	Open(ctx context.Context) (Session, error)
}

// Volatile is implemented by a [Broker] that keeps its messages in the memory of this process. A server that is closed asks how
// many are left, and logs it. A wrapper around such a broker should implement it too.
type Volatile interface {
	// Stranded returns how many messages, delayed ones included, wait where no session consumes, and how many dead letters there are.
	// While any session is open it does not count dead letters, since they can still be looked at. It never blocks.
	Stranded() (messages, dead int)
}

// Session is one live connection to a broker. It dies once, by Close, by the peer or by a lost link; Done is closed then.
type Session interface {
	// Capabilities says what this broker, at the version that answered, can do. Constant over the session's life.
	Capabilities() Capabilities

	// Declare makes what t names: first exchanges, then queues, then bindings. Declaring what exists with the same
	// properties is a success and changes nothing. It blocks for one round trip or more. An existing thing with other
	// properties, or a missing permission, is an error that Is [ErrRejected] and names the thing; what was declared before
	// it stays. The session survives a refused declaration.
	Declare(ctx context.Context, t Topology) error

	// Publish writes msgs in order and returns when all are written or have failed. Messages to different exchanges may
	// overtake each other. It blocks only for the window of unconfirmed messages, for a broker that blocks publishers, and
	// for the write.
	//
	// done runs exactly once for every message, with its index in msgs, in any order: on a goroutine of the session or,
	// before Publish returns, on the caller's. It must not block and must not call the session. err is
	//
	//   - nil: the broker has confirmed the message and it is in at least one queue (with NotBefore: it is stored);
	//   - Is [ErrNotSent]: nothing of it was written, publishing again cannot duplicate;
	//   - Is [ErrRejected]: the broker refused it, [ErrUnroutable] and [ErrTooLarge] among them; also an exchange that does not
	//     exist;
	//   - Is [ErrUnconfirmed]: written, and the session died before the broker answered; or the broker refused responsibility
	//     ([ErrNacked]); or it refused another message and did not report the fate of this one ([ErrProtocol]).
	//
	// ctx bounds the caller's wait, for the outcome too. When it ends after the write, the message stays in flight and done
	// still runs (at the latest when the session dies), but the message gives up its place in the window and its ID, Close does
	// not wait for it, and Status counts it. The caller has to report it as unconfirmed itself.
	//
	// Message.ID is unique among the messages to an exchange and key that somebody waits for: a second publish of an ID waits,
	// within ctx, for the outcome of the first and then gets its own. An empty ID is refused with ErrRejected. Bodies and headers are
	// not copied: the caller leaves them untouched from the call on.
	Publish(ctx context.Context, msgs []Message, done func(i int, err error))

	// Consume starts a consumer of an existing queue; [ErrQueueGone] if there is none.
	Consume(ctx context.Context, o ConsumeOptions) (Consumer, error)

	// TryGet takes up to max messages that are ready now, oldest first, without waiting for more; none is not an error. If it returns
	// fewer than max, no more were ready, unless ctx has ended. They are settled like every delivery, and given back when the session dies. [ErrQueueGone] if there is no such queue. What
	// an earlier TryGet of this session has taken, and all of it was settled before, is seen as settled: what was released is
	// found again. Purge sees it so too, and Inspect after a moment.
	TryGet(ctx context.Context, queue string, max int) ([]Delivery, error)

	// Inspect counts what is in a queue. [ErrQueueGone] if there is no such queue.
	Inspect(ctx context.Context, queue string) (QueueInfo, error)

	// Purge removes the messages that are ready, not those handed out, and returns how many. [ErrQueueGone] likewise.
	Purge(ctx context.Context, queue string) (int, error)

	// Delete removes a queue with its messages and bindings; its consumers end with [ErrQueueGone]. Deleting a queue that
	// does not exist is a success.
	Delete(ctx context.Context, queue string) error

	// Blocked reports whether the broker blocks publishers now, and why in its words. Publishing waits meanwhile; all else goes
	// on. It never blocks itself.
	Blocked() (reason string, blocked bool)

	// Status describes the session's health, for people. It never blocks.
	Status() Status

	// Done is closed when the session is dead and every done function has run; Err answers, and consumers end, before that.
	Done() <-chan struct{}

	// Err is nil while the session lives, then the reason, which Is [ErrSessionLost]; after Close it also Is [ErrClosed].
	Err() error

	// Close ends the session and waits, at most until ctx ends, for settlements and for messages whose callers still wait; then it
	// cuts. Consumers end, what they had not settled is given back by the broker. Twice is harmless: the second call waits for the first.
	// The error tells what could not be handed over in time; the session is dead whatever it says.
	Close(ctx context.Context) error
}

// ConsumeOptions says what a consumer wants.
type ConsumeOptions struct {
	Queue string // an existing queue
	Tag   string // name of the consumer, shown by the broker's tools; "" = the broker makes one. Taken in this session: ErrRejected.

	// Prefetch is how many deliveries may be handed out and not yet settled, at most; 1 to 65,535, the 16 bits of AMQP's
	// basic.qos. It is also the capacity of the channel of deliveries and the ceiling of SetPrefetch.
	Prefetch int
}

// Consumer receives the deliveries of one queue.
type Consumer interface {
	// Deliveries is the channel of deliveries, with capacity Prefetch, always the same one. The session never blocks on
	// it: it holds what was handed out and nobody received yet. It is closed when the consumer is over.
	Deliveries() <-chan Delivery

	// SetPrefetch changes how many deliveries may be unsettled: 0 pauses, the Prefetch of ConsumeOptions is the most.
	// Deliveries that are out already are not taken back.
	SetPrefetch(ctx context.Context, n int) error

	// Stop ends the consumer in peace: no more deliveries, those in the channel are given back untouched and uncharged,
	// the channel is closed. What was received can still be settled, as long as the session lives. Err is nil afterwards.
	// Twice is harmless. If ctx ends first, Stop returns its error, and the consumer still ends.
	Stop(ctx context.Context) error

	// Close ends the consumer and its deliveries: what is not settled is given back by the broker (and charged, see
	// Delivery.Losses) and settling it later returns [ErrDeliveryLost]. Acks that were handed over are flushed first. After
	// Stop it does the second half only. Twice is harmless.
	Close(ctx context.Context) error

	// Done is closed when the consumer is over, after Deliveries was closed.
	Done() <-chan struct{}

	// Err is nil while the consumer lives and after Stop or Close; otherwise it Is [ErrQueueGone] (deleted),
	// [ErrConsumerLost] (the session lives on, consume again) or [ErrSessionLost].
	Err() error
}

// Capabilities says what a broker can do. The zero value can do only what every broker must.
type Capabilities struct {
	// Delay: Settler.Retry takes a delay above 0, and Publish a Message.NotBefore. Without it they are errors.ErrUnsupported.
	Delay bool
	// ConsumerTimeout is after how long the broker takes an unsettled delivery away from a consumer that is still there, and
	// gives it to somebody else. It is the broker's default, not what its operator has set; 0 = never.
	ConsumerTimeout time.Duration
	// Fanout: exchanges of kind Fanout can be declared.
	Fanout bool
	// Ephemeral: queues that live and die with the session can be declared.
	Ephemeral bool
	// KeepsPlace: messages released to a queue that this session has declared return to the place that they had, whatever the order in which they
	// are released. Without it they come again in the order of their release. It says nothing of [Undeliverable].
	KeepsPlace bool
	// ExactLosses: Delivery.Losses counts every loss, and only of deliveries that somebody had received. Without it the count
	// is at most the number of losses, and what was prefetched and never looked at may be charged as well, since the broker
	// cannot know.
	ExactLosses bool
}

// Status describes the health of a session. The zero value: nothing is wrong.
type Status struct {
	// Node is where the session is connected, without credentials; "" = there is nothing to tell, as in the process itself.
	Node string
	// Unanswered is how many published messages the broker has not answered although their callers have stopped waiting.
	Unanswered int
	// Unreadable counts, by queue, the messages that were handed out with [Message].Unreadable set. Nil if there were none.
	Unreadable map[string]int
	// Channels says why the session cannot have another consumer; "" = it can.
	Channels string
	// Delays says why delayed messages may be late; "" if nothing is known to hold them up.
	Delays string
}

// QueueInfo is what Inspect knows of a queue. A number that the broker does not tell is -1.
type QueueInfo struct {
	Ready     int // messages waiting to be handed out
	Unsettled int // messages handed out and not settled
	Consumers int // consumers, over all sessions
}
