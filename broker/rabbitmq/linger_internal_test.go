package rabbitmq

import (
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
)

// An ack waits for others only while nobody needs it: the receiver has deliveries at hand, nothing else is to be
// settled, and there are not many.
func TestAcksLingerOnlyWhileDeliveriesAreAtHand(t *testing.T) {
	t.Parallel()
	ack := settlement{tag: 1}
	for name, c := range map[string]struct {
		atHand  int
		pending []settlement
		retired bool
		want    bool
	}{
		"at hand":           {1, []settlement{ack}, false, true},
		"nothing to write":  {1, nil, false, false},
		"nothing at hand":   {0, []settlement{ack}, false, false},
		"many acks":         {1, make([]settlement, lingerMost), false, false},
		"a release":         {1, []settlement{ack, {tag: 2, release: true}}, false, false},
		"somebody waits":    {1, []settlement{{tag: 2, written: make(chan struct{})}, ack}, false, false},
		"the lane is ended": {1, []settlement{ack}, true, false},
	} {
		l := &lane{retired: c.retired, consumer: &consumer{deliveries: make(chan broker.Delivery, 1)}}
		for range c.atHand {
			l.consumer.deliveries <- broker.Delivery{}
		}
		for _, x := range c.pending {
			l.settle(x)
		}
		if got := l.lingers(); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
	credit := &lane{consumer: &consumer{deliveries: make(chan broker.Delivery, 1), limit: 1000}}
	credit.open = 1000 - 2*lingerMost
	if credit.settle(ack); credit.lingers() {
		t.Error("an ack lingers although the receiver may soon need it")
	}
	if credit.open--; !credit.lingers() {
		t.Error("an ack does not linger although the broker may send many more")
	}
	each := &lane{consumer: &consumer{deliveries: make(chan broker.Delivery, 1), ackEach: true}}
	each.consumer.deliveries <- broker.Delivery{}
	if each.settle(ack); each.lingers() {
		t.Error("an ack lingers despite AckEach")
	}
	single := &lane{} // of a TryGet
	if single.settle(ack); single.lingers() {
		t.Error("an ack of a TryGet lingers")
	}
}
