package engine

import "time"

const (
	// aheadTime is how much of its own work a worker fetches ahead. It is many round trips, also on a slow network.
	aheadTime = 100 * time.Millisecond
	// paceEvery is how often that is measured. One period more decides, since the machine may have been busy in the first.
	paceEvery = aheadTime / 2
	// firstPeriod is the first period after a pause. If every slot has ended a call in it, the queue is full of short
	// tasks.
	firstPeriod = paceEvery / 10
	// mostPrefetch is the most that a worker prefetches by itself, unless its limit is higher.
	mostPrefetch = 1000
	// mostBytes is about how much it prefetches by itself, in bytes of bodies.
	mostBytes = 16 << 20
	// calmTime is how long the prefetch does not grow after too much was fetched.
	calmTime = time.Second
)

// pace decides how many deliveries a worker prefetches: its limit, and what its slots finish within aheadTime. Longer
// calls do not count, so a worker that has only those fetches nothing ahead.
type pace struct {
	limit   int
	present int // the prefetch; 0 = paused

	before int           // short calls in the last period
	over   int           // for how many periods in a row too many deliveries have waited
	calm   time.Duration // how long it must not grow yet
}

// next returns the prefetch after a period in which so many short calls with so many bytes of bodies have ended, and
// while so many deliveries wait for a slot. A change costs RabbitMQ a subscription, so it changes by half at least.
func (p *pace) next(short, bytes, waiting int) int {
	rate := p.before + short // in aheadTime
	p.before = short
	p.calm = max(0, p.calm-paceEvery)
	if p.over++; waiting <= 2*rate {
		p.over = 0
	}
	most := mostPrefetch
	if short > 0 {
		most = int(min(int64(most), mostBytes*int64(short)/int64(max(bytes, 1)))) // int may have 32 bits
	}
	most = max(p.limit, most)
	want := min(p.limit+rate, most)
	switch {
	case p.present < p.limit: // raising it has failed
		return want
	case p.excess():
		p.calm = calmTime
		return min(want, p.present)
	case p.present > 2*most:
		return want
	case p.calm == 0 && (want >= 2*p.present || want == most && want > p.present):
		return want
	}
	return p.present
}

// first is next after a first period.
func (p *pace) first(short, bytes, waiting int) int {
	p.before = 0
	if short > p.limit {
		const periods = int(paceEvery / firstPeriod)
		short, bytes = periods*short, periods*bytes
	}
	return p.next(short, bytes, waiting)
}

// excess reports whether more deliveries wait than the slots can begin soon.
func (p *pace) excess() bool { return p.over > 1 }
