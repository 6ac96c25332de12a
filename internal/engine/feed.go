package engine

import (
	"sync/atomic"
	"time"

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

	taken  atomic.Int64 // deliveries that slots have received
	short  atomic.Int64 // calls that ended within aheadTime, and
	bytes  atomic.Int64 // their bodies, since they were last read
	asleep atomic.Bool  // nobody follows them until the next delivery
	woken  chan struct{}
}

// minCredible is the minimum of feed.credible.
const minCredible = 20

func newFeed(session broker.Session, consumer broker.Consumer, prefetch int) *feed {
	can := session.Capabilities()
	return &feed{
		consumer: consumer, session: session, exact: can.ExactLosses, delays: can.Delay,
		credible: int64(max(2*prefetch, minCredible)), woken: make(chan struct{}, 1),
	}
}

// received notes that a slot has received a delivery.
func (f *feed) received() {
	f.taken.Add(1)
	if f.asleep.Load() {
		f.wake()
	}
}

// wake makes the feeder follow the calls again.
func (f *feed) wake() {
	if f.asleep.CompareAndSwap(true, false) {
		f.woken <- struct{}{} // there is room: it is read before the feeder sleeps again
	}
}

// sleep lets the feeder sleep until more than taken deliveries have been received.
func (f *feed) sleep(taken int64) {
	f.asleep.Store(true)
	if f.taken.Load() != taken {
		f.wake()
	}
}

// ended notes how long a call of one of its deliveries took.
func (f *feed) ended(c *Call, took time.Duration) {
	if took < aheadTime {
		f.short.Add(1)
		f.bytes.Add(int64(len(c.Delivery.Body)))
	}
}

// believes reports whether the mark of a redelivered message is a reason to suspect it. The deliveries of a dead worker
// return to the head of the queue, those that it ran first. But after a node was killed, RabbitMQ marks
// every message of a classic queue as redelivered, even those never delivered (3.10.8, measured). A long run of such
// marks is therefore ignored.
func (f *feed) believes() bool { return f.streak.Add(1) <= f.credible }
