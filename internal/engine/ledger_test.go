package engine

import (
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// The ledger abandons overdue calls, the oldest first, and the next one when an abandoned call ends.
func TestTheLedgerAbandonsAsManyCallsAsItMay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var replaced []*Call
		var count atomic.Int64
		l := newLedger(1, &count, func(c *Call) { replaced = append(replaced, c) }, nil)
		l.enter(3)
		calls := make([]*Call, 3)
		for i := range calls {
			calls[i] = &Call{index: -1, due: time.Now().Add(time.Duration(i+1) * time.Second)}
			l.callBegins(calls[i])
		}
		<-time.After(time.Minute)
		synctest.Wait()
		if len(replaced) != 1 || replaced[0] != calls[0] {
			t.Fatalf("%d calls are abandoned, want the first", len(replaced))
		}
		if l.callEnded(calls[1]) {
			t.Error("an overdue call is called abandoned although the bound forbids it")
		}
		if !l.callEnded(calls[0]) {
			t.Error("the abandoned call is not known as such when it ends")
		}
		if len(replaced) != 2 || replaced[1] != calls[2] {
			t.Errorf("%d calls are abandoned after the end of the first, want the third too", len(replaced))
		}
		if n, abandoned := l.counts(); n != 1 || abandoned != 1 || count.Load() != 2 {
			t.Errorf("%d calls, %d abandoned, %d in all", n, abandoned, count.Load())
		}
		if !l.callEnded(calls[2]) {
			t.Error("the third is not known as abandoned")
		}
		l.stopTimer()
	})
}

// A shift ends once, when its feeder and all its goroutines have ended, whichever is last.
func TestTheLedgerEndsTheShiftOnce(t *testing.T) {
	t.Parallel()
	for _, feederFirst := range []bool{true, false} {
		ends := 0
		l := newLedger(0, nil, nil, func() { ends++ })
		l.enter(2)
		if feederFirst && l.runEnded() {
			t.Error("over while two goroutines run")
		}
		l.run(func() {})
		select {
		case <-l.empty:
			t.Error("empty with a goroutine left")
		default:
		}
		l.run(func() {})
		<-l.empty
		if !feederFirst && l.runEnded() {
			ends++
		}
		if ends != 1 {
			t.Errorf("feeder first %t: the shift ended %d times", feederFirst, ends)
		}
	}
}

// User code may end a goroutine at any point.
func TestAGoroutineThatExitsIsNoLongerCounted(t *testing.T) {
	t.Parallel()
	l := newLedger(0, nil, nil, nil)
	l.spawn(runtime.Goexit)
	<-l.empty
}
