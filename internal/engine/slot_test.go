package engine

import (
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
)

// After a node was killed, RabbitMQ marks every message of a classic queue as redelivered. A long run of such marks is
// therefore ignored.
func TestALongRowOfMarksIsNotBelieved(t *testing.T) {
	t.Parallel()
	f := &feed{credible: 20}
	believed := 0
	for range 1000 {
		if f.believes() {
			believed++
		}
	}
	if believed != 20 {
		t.Errorf("believed %d of 1,000 in a row, want 20", believed)
	}
	f.streak.Store(0) // as a delivery without a mark does
	if !f.believes() {
		t.Error("the first of the next row is not believed")
	}
}

// A delivery that a slot received while the consumer stopped is given back. A delivery that is left to Consumer.Close
// is charged as lost.
func TestADeliveryReceivedInTheMomentOfTheStopIsGivenBack(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	close(ended)
	for range 64 {
		s := New(&Config{Handler: anyHandler{}, Counters: &Counters{}, Shared: NewShared(), Prefetch: 1})
		s.phases.stopTaking()
		close(s.feeder.stopped)
		released := 0
		d := broker.Delivery{Settler: releaser{n: &released}}
		if s.accept(&d, &feed{consumer: endedConsumer{done: ended}, exact: true}) || released != 1 {
			t.Fatalf("given back %d times, want once", released)
		}
		s.phases.end()
	}
}

// anyHandler makes calls.
type anyHandler struct{ Handler }

func (anyHandler) NewCall() *Call { return &Call{} }
func (anyHandler) Recycle(*Call)  {}

// endedConsumer has stopped.
type endedConsumer struct {
	broker.Consumer
	done chan struct{}
}

func (c endedConsumer) Done() <-chan struct{} { return c.done }

// releaser counts released deliveries.
type releaser struct {
	broker.Settler
	n *int
}

func (r releaser) Release() error      { *r.n++; return nil }
func (releaser) Lost() <-chan struct{} { return nil }

// A copy of a message with unreadable headers would have readable ones, without its attempts and its expiry, and be run.
func TestAMessageWithUnreadableHeadersIsGivenBackAsItIs(t *testing.T) {
	t.Parallel()
	s := New(&Config{Handler: anyHandler{}, Counters: &Counters{}, Shared: NewShared(), Prefetch: 1})
	defer s.phases.end()
	released := 0
	d := broker.Delivery{Message: broker.Message{Unreadable: "too deep"}, Settler: releaser{n: &released}} // it has no Retry
	if err := s.settler.giveBack(s.cfg.newCall(d, &feed{})); err != nil || released != 1 {
		t.Errorf("released %d times, %v", released, err)
	}
}
