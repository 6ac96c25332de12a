package engine

import (
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
)

// A classic queue of RabbitMQ marks all that it holds as redelivered when its node was killed.
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
	f.streak.Store(0) // as one without a mark does
	if !f.believes() {
		t.Error("the first of the next row is not believed")
	}
}

// A delivery that a slot received while the consumer stopped is given back. What is left to Consumer.Close is charged.
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

// endedConsumer has stopped.
type endedConsumer struct {
	broker.Consumer
	done chan struct{}
}

func (c endedConsumer) Done() <-chan struct{} { return c.done }

// releaser counts what is given back.
type releaser struct {
	broker.Settler
	n *int
}

func (r releaser) Release() error      { *r.n++; return nil }
func (releaser) Lost() <-chan struct{} { return nil }
