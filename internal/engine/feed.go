package engine

import (
	"sync/atomic"

	"github.com/seed-416683c9/dispatcher/broker"
)

// feed is a consumer that the slots of a shift read from. When it has ended, they ask the feeder for the next one. A
// feed does not know its successor. Otherwise a call that runs for a year would keep every consumer of that year.
type feed struct {
	consumer broker.Consumer
	session  broker.Session // of the consumer
	exact    bool           // it counts losses exactly
	delays   bool           // it can publish with a delay
	streak   atomic.Int64   // deliveries marked as redelivered since the last one that was not
	credible int64          // how many of those in a row are believed
}

// minCredible is the minimum of feed.credible.
const minCredible = 20

func newFeed(session broker.Session, consumer broker.Consumer, prefetch int) *feed {
	can := session.Capabilities()
	return &feed{
		consumer: consumer, session: session, exact: can.ExactLosses, delays: can.Delay,
		credible: int64(max(2*prefetch, minCredible)),
	}
}

// believes reports whether the mark of a redelivered message is a reason to suspect it. The deliveries of a dead worker
// return to the head of the queue, and are no more than it had fetched. But after a node was killed, RabbitMQ marks
// every message of a classic queue as redelivered, even those never delivered (3.10.8, measured). A long run of such
// marks is therefore ignored.
func (f *feed) believes() bool { return f.streak.Add(1) <= f.credible }
