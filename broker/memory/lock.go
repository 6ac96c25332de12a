package memory

import (
	"sync"
	"sync/atomic"
)

// lock is the lock of a broker. Acks, of which there are as many as messages, do not wait for it: whoever holds it does
// their part that needs it. If they waited, a worker's slots and a publisher would soon stand in line behind each other,
// and each step would cost a switch of goroutines, which takes as long as the rest of a task (measured on 2 cores).
type lock struct {
	mu    sync.Mutex
	acked atomic.Pointer[delivery] // the latest of a list of deliveries for collect
}

// Lock also does the remaining work for all acks that have returned, so its caller sees them done.
func (l *lock) Lock() {
	l.mu.Lock()
	l.collect()
}

func (l *lock) Unlock() {
	l.mu.Unlock()
	l.collectIfFree()
}

// ack ends a delivery that was acked, or has the holder of the lock end it.
func (l *lock) ack(d *delivery) {
	if l.mu.TryLock() {
		l.collect()
		d.leave()
		d.owner.queue.dispatch()
		l.Unlock()
		return
	}
	for {
		d.ackedBefore = l.acked.Load()
		if l.acked.CompareAndSwap(d.ackedBefore, d) {
			break
		}
	}
	l.collectIfFree()
}

// collectIfFree leaves no delivery behind: if the lock is not free, its holder comes here afterwards. TryLock also fails
// while a caller of Lock that is about to hold it was given precedence.
func (l *lock) collectIfFree() {
	for l.acked.Load() != nil && l.mu.TryLock() {
		l.collect()
		l.mu.Unlock()
	}
}

// collect ends the acked deliveries and hands out what there is room for now. The caller holds mu.
func (l *lock) collect() {
	if l.acked.Load() == nil {
		return
	}
	var q *queue
	for d := l.acked.Swap(nil); d != nil; {
		if q != nil && q != d.owner.queue {
			q.dispatch()
		}
		q = d.owner.queue
		d.leave()
		d, d.ackedBefore = d.ackedBefore, nil
	}
	q.dispatch()
}
