package engine

import (
	"context"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/link"
)

const (
	// relieveEvery is how often a worker that has fetched too much looks for others at first, and relieveSeldom later.
	relieveEvery  = aheadTime * 5 / 2
	relieveSeldom = 2 * time.Second
	// afterRefusal is how long it looks for nobody after the broker has refused a copy.
	afterRefusal = time.Minute
	// longestWait is how long it keeps what it has fetched if there are none. RabbitMQ takes a delivery away from its
	// consumer after half an hour.
	longestWait = 5 * time.Minute
)

// ahead sets the prefetch of a feed as pace says. It runs on the feeder's goroutine, once for each feed.
type ahead struct {
	*feeder
	pace
	at *feed

	taken int64     // at.taken at the end of the last period
	since time.Time // since when too much has been fetched; zero = it has not
	asked time.Time // when it last looked for others
}

// follow keeps the prefetch of a feed right until its consumer has ended or the shift is stopped. It sleeps while the
// slots take nothing and nothing is fetched.
func (f *feeder) follow(at *feed) {
	a := &ahead{feeder: f, at: at, pace: pace{limit: f.cfg.Limit, present: f.options().Prefetch}}
	f.state.prefetches(a.present)
	defer f.state.prefetches(0)
	ticker := time.NewTicker(paceEvery)
	defer ticker.Stop()
	var next func(short, bytes, waiting int) int
	for asleep := true; ; {
		if asleep {
			ticker.Stop()
			if f.cfg.Prefetch == 0 {
				at.sleep(a.taken)
			}
		}
		select {
		case <-at.consumer.Done():
			return
		case <-f.phases.taking.Done():
			return
		case <-at.woken:
			asleep = false
			next = a.first
			ticker.Reset(firstPeriod)
		case <-ticker.C:
			asleep = !a.period(time.Now(), next)
			next = a.pace.next
			ticker.Reset(paceEvery)
		}
	}
}

// period looks at the last period, with next or first of pace. It reports whether there is more to come.
func (a *ahead) period(now time.Time, next func(short, bytes, waiting int) int) (goesOn bool) {
	taken, waiting := a.at.taken.Load(), a.waiting()
	quiet := taken == a.taken && waiting == 0
	a.taken = taken
	prefetch := next(int(a.at.short.Swap(0)), int(a.at.bytes.Swap(0)), waiting)
	switch {
	case !a.excess():
		a.since = time.Time{}
	case a.since.IsZero():
		a.since = now
	}
	if a.excess() {
		a.relieve(now, prefetch)
	} else if prefetch != a.present {
		a.set(prefetch)
	}
	if !quiet || a.present < a.limit {
		return true
	}
	// More than its slots can run must not come while they are busy, unnoticed.
	calls, _ := a.ledger.counts()
	return a.present > a.limit && calls > 0
}

// waiting returns how many deliveries wait for a slot. While a slot runs a suspect, one waits for it.
func (a *ahead) waiting() int { return max(0, len(a.at.consumer.Deliveries())-a.suspects()) }

// set changes the prefetch. After an error the consumer has ended, or it may be paused, and is asked again.
func (a *ahead) set(prefetch int) {
	ctx, cancel := context.WithTimeout(a.phases.taking, link.CloseTimeout)
	defer cancel()
	if err := a.at.consumer.SetPrefetch(ctx, prefetch); err != nil {
		prefetch = 0
	}
	a.present = prefetch
	a.state.prefetches(prefetch)
}

// relieve lowers the prefetch, and gives back what waits for a slot if another worker could run it: the queue has other
// consumers and no messages. If there are messages, the others are busy as well, and if there are no others, the tasks
// stay in their order.
func (a *ahead) relieve(now time.Time, prefetch int) {
	waited := now.Sub(a.since)
	if now.Sub(a.asked) < min(max(waited/4, relieveEvery), relieveSeldom) {
		return
	}
	a.asked = now
	info, err := a.inspect()
	must := !a.at.exact && waited >= longestWait
	if err != nil || !must && info.Ready == 0 && info.Consumers < 2 {
		return
	}
	if prefetch != a.present {
		a.set(prefetch)
	}
	if _, blocked := a.at.session.Blocked(); blocked || !must && info.Ready > 0 {
		return
	}
	// The broker may refuse copies, and what is then requeued may be charged. So the first goes alone.
	for n := 1; ; n = givers {
		some := received(a.at.consumer, n)
		if len(some) == 0 {
			return
		}
		if !a.giveBack(some, a.at) {
			a.asked = now.Add(afterRefusal)
			return
		}
	}
}

func (a *ahead) inspect() (broker.QueueInfo, error) {
	ctx, cancel := context.WithTimeout(a.phases.taking, link.CloseTimeout)
	defer cancel()
	return a.at.session.Inspect(ctx, a.cfg.Queue)
}

// received takes up to most deliveries that wait in the channel of a consumer. Slots may be taking them, too.
func received(consumer broker.Consumer, most int) (waiting []broker.Delivery) {
	for len(waiting) < most {
		select {
		case d, ok := <-consumer.Deliveries():
			if !ok {
				return waiting
			}
			waiting = append(waiting, d)
		default:
			return waiting
		}
	}
	return waiting
}
