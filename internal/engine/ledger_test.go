package engine

import (
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
		l := newLedger(1, func(c *Call) { replaced = append(replaced, c) }, &count)
		l.enter(3)
		calls := make([]*Call, 3)
		for i := range calls {
			calls[i] = &Call{index: -1, due: time.Now().Add(time.Duration(i+1) * time.Second)}
			l.callBegins(calls[i])
		}
		time.Sleep(time.Minute)
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
		if n, abandoned := l.running(); n != 1 || abandoned != 1 || count.Load() != 2 {
			t.Errorf("%d calls, %d abandoned, %d in all", n, abandoned, count.Load())
		}
		if !l.callEnded(calls[2]) {
			t.Error("the third is not known as abandoned")
		}
		l.end()
	})
}

// A shift ends once, when its feeder and all its goroutines have ended, whichever is last.
func TestTheLedgerEndsTheShiftOnce(t *testing.T) {
	t.Parallel()
	for feederFirst := range 2 {
		l := newLedger(0, nil, nil)
		l.enter(2)
		var ends []bool
		if feederFirst == 1 {
			ends = append(ends, l.runEnded())
		}
		ends = append(ends, l.leave())
		select {
		case <-l.empty:
			t.Error("empty with a goroutine left")
		default:
		}
		ends = append(ends, l.leave())
		<-l.empty
		if feederFirst == 0 {
			ends = append(ends, l.runEnded())
		}
		for i, end := range ends {
			if end != (i == len(ends)-1) {
				t.Errorf("feeder first %d: %v", feederFirst, ends)
			}
		}
	}
}
