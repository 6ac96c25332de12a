package memory_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func TestPrefetchBoundsWhatIsOut(t *testing.T) {
	t.Parallel()
	s := open(t, memory.New())
	declare(t, s, "q")
	c := consume(t, s, "q", 3)
	fill(t, s, "q", 1, 10)
	inChannel := func(want int) {
		t.Helper()
		if n := len(c.Deliveries()); n != want {
			t.Fatalf("%d in the channel, want %d", n, want)
		}
	}
	inChannel(3)
	ok(t, c.SetPrefetch(bg, 1))
	one, two := next(t, c), next(t, c)
	ok(t, one.Ack())
	ok(t, two.Ack())
	inChannel(1) // message 3 is unsettled and fills the new limit
	three := next(t, c)
	ok(t, c.SetPrefetch(bg, 0))
	ok(t, three.Ack())
	inChannel(0)
	ok(t, c.SetPrefetch(bg, 3))
	inChannel(3)
	if d := next(t, c); d.ID != "4" {
		t.Fatalf("got %s", d.ID)
	}
}

func TestConsumersTakeTurns(t *testing.T) {
	t.Parallel()
	b := memory.New()
	s, other := open(t, b), open(t, b)
	declare(t, s, "q")
	consumers := []broker.Consumer{consume(t, s, "q", 4), consume(t, other, "q", 2), consume(t, s, "q", 4)}
	fill(t, s, "q", 1, 20)
	for i, want := range []string{"[1 4 7 9]", "[2 5]", "[3 6 8 10]"} {
		var got []string
		for range len(consumers[i].Deliveries()) {
			got = append(got, next(t, consumers[i]).ID)
		}
		if fmt.Sprint(got) != want {
			t.Errorf("consumer %d got %v, want %v", i, got, want)
		}
	}
}

// Each case ends a consumer in a different way. Message 1 is acked, 2 is received, 3 is in the channel and 4 is ready.
func TestEndOfConsumer(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		end     func(*memory.Broker, broker.Session, broker.Consumer) error
		queue   []string
		err     error
		settled error // of acking 2
	}{
		"Stop": {func(_ *memory.Broker, _ broker.Session, c broker.Consumer) error {
			return errors.Join(c.Stop(bg), c.Stop(bg))
		}, []string{"3", "4"}, nil, nil},
		"Stop in vain": {func(_ *memory.Broker, _ broker.Session, c broker.Consumer) error {
			if err := c.Stop(ended()); !errors.Is(err, context.Canceled) {
				return fmt.Errorf("stop: %w", err)
			}
			return nil
		}, []string{"3", "4"}, nil, nil},
		"Close": {func(_ *memory.Broker, _ broker.Session, c broker.Consumer) error {
			return errors.Join(c.Close(bg), c.Close(bg))
		}, []string{"2/1", "3", "4"}, nil, broker.ErrDeliveryLost},
		"Stop and Close": {func(_ *memory.Broker, _ broker.Session, c broker.Consumer) error {
			return errors.Join(c.Stop(bg), c.Close(bg))
		}, []string{"2/1", "3", "4"}, nil, broker.ErrDeliveryLost},
		"session closed": {func(_ *memory.Broker, s broker.Session, _ broker.Consumer) error {
			return errors.Join(s.Close(bg), s.Close(bg))
		}, []string{"2/1", "3", "4"}, broker.ErrClosed, broker.ErrDeliveryLost},
		"session killed": {func(b *memory.Broker, _ broker.Session, _ broker.Consumer) error {
			b.KillSessions()
			return nil
		}, []string{"2/1", "3", "4"}, broker.ErrSessionLost, broker.ErrDeliveryLost},
		"queue deleted": {func(_ *memory.Broker, s broker.Session, _ broker.Consumer) error {
			return errors.Join(s.Delete(bg, "q"), s.Delete(bg, "q"), s.Declare(bg, broker.Topology{Queues: []broker.QueueSpec{{Name: "q"}}}))
		}, nil, broker.ErrQueueGone, broker.ErrDeliveryLost},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := memory.New()
			s := open(t, b)
			declare(t, s, "q")
			fill(t, s, "q", 1, 4)
			c := consume(t, s, "q", 2)
			one, two := next(t, c), next(t, c)
			ok(t, one.Ack())
			if c.Err() != nil {
				t.Fatal(c.Err())
			}
			ok(t, test.end(b, s, c))
			<-c.Done()
			if d, open := <-c.Deliveries(); open {
				t.Errorf("%s is still in the channel", d.ID)
			}
			if !errors.Is(c.Err(), test.err) {
				t.Errorf("Err is %v, want %v", c.Err(), test.err)
			}
			wantGet(t, open(t, b), "q", test.queue...)
			select {
			case <-two.Lost():
				if test.settled == nil {
					t.Error("2 is lost")
				}
			default:
				if test.settled != nil {
					t.Error("2 is not lost")
				}
			}
			if err := two.Ack(); !errors.Is(err, test.settled) {
				t.Errorf("ack of 2: %v, want %v", err, test.settled)
			}
			if err := one.Release(); !errors.Is(err, broker.ErrSettled) {
				t.Errorf("second settling of 1: %v", err)
			}
		})
	}
}

func TestStoppedConsumerLosesItsDeliveriesWithTheSession(t *testing.T) {
	t.Parallel()
	b := memory.New()
	s := open(t, b)
	declare(t, s, "q")
	fill(t, s, "q", 1, 2)
	c := consume(t, s, "q", 2)
	one, two := next(t, c), next(t, c)
	got := consume(t, s, "q", 1)
	ok(t, c.Stop(bg))
	ok(t, one.Release())
	if d := next(t, got); d.ID != "1" || !d.Redelivered || d.Losses != 0 {
		t.Fatalf("%+v", d)
	}
	b.KillSessions()
	<-two.Lost()
	if c.Err() != nil {
		t.Errorf("error of a consumer that stopped before its session died: %v", c.Err())
	}
	wantGet(t, open(t, b), "q", "1/1", "2/1")
}

// Sessions that die together must not deliver their released messages to each other.
func TestKilledTogether(t *testing.T) {
	t.Parallel()
	b := memory.New()
	s := open(t, b)
	declare(t, s, "q")
	fill(t, s, "q", 1, 6)
	for range 3 {
		c := consume(t, open(t, b), "q", 2)
		next(t, c)
	}
	if n := b.KillSessions(); n != 4 {
		t.Fatalf("killed %d sessions", n)
	}
	wantGet(t, open(t, b), "q", "1/1", "2", "3/1", "4", "5/1", "6")
}

func TestWhatASessionGivesBackGoesToTheOthers(t *testing.T) {
	t.Parallel()
	b := memory.New()
	s, other := open(t, b), open(t, b)
	declare(t, s, "q")
	fill(t, s, "q", 1, 5)
	got, err := s.TryGet(bg, "q", 1)
	ok(t, err)
	next(t, consume(t, s, "q", 2)) // message 3 stays in its channel
	c := consume(t, other, "q", 9)
	if d := next(t, c); d.ID != "4" {
		t.Fatalf("got %s", d.ID)
	}
	ok(t, s.Close(bg))
	<-got[0].Lost()
	next(t, c) // 5
	for _, want := range []broker.Delivery{
		{Message: broker.Message{ID: "1"}, Losses: 1}, {Message: broker.Message{ID: "2"}, Losses: 1}, {Message: broker.Message{ID: "3"}},
	} {
		if d := next(t, c); d.ID != want.ID || d.Losses != want.Losses || !d.Redelivered {
			t.Errorf("got %s losses %d redelivered %t, want %s losses %d", d.ID, d.Losses, d.Redelivered, want.ID, want.Losses)
		}
	}
}
