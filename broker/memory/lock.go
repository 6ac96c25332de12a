package memory

import (
	"sync"
	"sync/atomic"
)

// lock is the lock of a broker. An ack does not wait for it: if it is taken, its holder does the part of the ack that
// needs it. If acks waited, a worker's slots and a publisher would queue up behind each other, and each step would cost
// a switch of goroutines. That made a task a quarter slower (measured on 2 cores).
type lock struct {
	mu    sync.Mutex
	acked atomic.Pointer[delivery] // the latest of a list of deliveries for collect
}

// Lock also completes the acks that have returned, so its caller sees them done.
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

// collectIfFree leaves no delivery behind. If TryLock fails, the lock has a holder, who comes here afterwards, or is
// about to be given to a caller of Lock, which collects.
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
