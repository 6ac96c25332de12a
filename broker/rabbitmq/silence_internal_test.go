package rabbitmq

import (
	"testing"
	"testing/synctest"
	"time"
)

// A node is silent when messages wait and it has answered nothing for long enough. The time is shorter if many wait.
func TestSilenceLastsUntilAnyAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var x silence
		check := func(wantFor time.Duration, wantWaiting int, want bool) {
			t.Helper()
			if d, n, tooLong := x.lasted(); d != wantFor || n != wantWaiting || tooLong != want {
				t.Errorf("silent for %v with %d messages, too long %t; want %v, %d, %t", d, n, tooLong, wantFor, wantWaiting, want)
			}
		}
		<-time.After(time.Hour)
		check(0, 0, false)
		for range silentMany - 1 {
			x.wrote()
		}
		<-time.After(silentFew - time.Second)
		check(silentFew-time.Second, silentMany-1, false)
		x.wrote()
		check(silentFew-time.Second, silentMany, true)
		x.wrote()
		x.answered()
		x.over()
		<-time.After(silentNode - time.Second)
		check(silentNode-time.Second, silentMany, false)
		<-time.After(time.Second)
		check(silentNode, silentMany, true)
		for range silentMany - 1 {
			x.over()
		}
		check(silentNode, 1, false)
		<-time.After(silentFew - silentNode)
		check(silentFew, 1, true) // an outbox with one key sends no more than that
		x.over()
		<-time.After(time.Hour)
		x.wrote()
		check(0, 1, false)
	})
}

// A node is left rarely, and only for a node that is not known to be bad.
func TestNodeIsLeftOnlyForABetterOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{addresses: make([]address, 1)}
		if b.leaver(0) != nil {
			t.Error("the only node can be left")
		}
		b.addresses = make([]address, 3)
		b.shunned.add(1)
		if !b.leaver(0)() {
			t.Error("the node cannot be left for the third one")
		}
		if b.leaver(2)() {
			t.Error("a node is left although one of the others failed and the other was left")
		}
		<-time.After(shunTime + time.Second)
		b.shunned.add(0) // it fails too, which does not shorten the time for which it is avoided
		if b.leaver(0)() {
			t.Error("a node is left a second time")
		}
		if !b.leaver(2)() {
			t.Error("a node cannot be left for one that failed a while ago")
		}
		if first := b.shunned.order(3)[0]; first != 1 {
			t.Errorf("node %d comes first, want the one that was not left", first)
		}
		<-time.After(leftFor)
		if !b.leaver(0)() {
			t.Error("a node can never be left again")
		}
	})
}
