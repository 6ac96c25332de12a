package rabbitmq

import (
	"testing"
	"testing/synctest"
	"time"
)

// A node is silent when enough messages wait and nothing at all was answered for long enough.
func TestSilenceLastsUntilAnyAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var x silence
		for range silentLeast - 1 {
			x.wrote()
		}
		time.Sleep(time.Hour)
		if d, n := x.lasted(); d != 0 || n != 0 {
			t.Errorf("%d messages are silent for %v, too few to tell", n, d)
		}
		x.wrote()
		if d, n := x.lasted(); d != time.Hour || n != silentLeast {
			t.Errorf("silent for %v with %d messages, want an hour and %d", d, n, silentLeast)
		}
		x.wrote()
		x.answered()
		x.over()
		time.Sleep(time.Second)
		if d, _ := x.lasted(); d != time.Second {
			t.Errorf("silent for %v after an answer a second ago", d)
		}
		for range silentLeast {
			x.over()
		}
		time.Sleep(time.Hour)
		for range silentLeast {
			x.wrote()
		}
		if d, _ := x.lasted(); d != 0 {
			t.Errorf("silent for %v, and the messages were written just now", d)
		}
	})
}

// A node is left rarely, and only for one that is not known to be bad.
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
		time.Sleep(shunTime + time.Second)
		b.shunned.add(0) // it fails, too, which does not shorten what is remembered
		if b.leaver(0)() {
			t.Error("a node is left a second time")
		}
		if !b.leaver(2)() {
			t.Error("a node cannot be left for one that failed a while ago")
		}
		if first := b.shunned.order(3)[0]; first != 1 {
			t.Errorf("node %d comes first, want the one that was not left", first)
		}
		time.Sleep(leftFor)
		if !b.leaver(0)() {
			t.Error("a node can never be left again")
		}
	})
}
