package rabbitmq_test

import (
	"errors"
	"fmt"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

func TestConsumerTagsAreUniqueInASession(t *testing.T) {
	t.Parallel()
	q := queue(t, nil)
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	o := broker.ConsumeOptions{Queue: q, Tag: "t", Prefetch: 2}
	c, err := s.Consume(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Consume(testContext(t), o); !errors.Is(err, broker.ErrRejected) {
		t.Errorf("consume with a tag in use: %v", err)
	}
	if err := c.Stop(testContext(t)); err != nil {
		t.Error(err)
	}
	if _, err := s.Consume(testContext(t), o); err != nil {
		t.Errorf("consume with the tag of a stopped consumer: %v", err)
	}
}

// However the limit changes under load, every free place below it is filled sooner or later. Nothing is lost or
// delivered twice.
func TestEverySettlementMakesRoomWhileTheLimitMoves(t *testing.T) {
	t.Parallel()
	q := queue(t, nil)
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	const n, most = 400, 16
	fill(t, s, q, n)
	c := consume(t, s, q, most)
	got := make(map[string]bool)
	var held []broker.Delivery
	for i := 0; len(got) < n; i++ {
		limit := 1 + i*7%most
		if err := c.SetPrefetch(testContext(t), limit); err != nil {
			t.Fatal(err)
		}
		for len(held) > 0 && len(held) >= limit { // the oldest stays longest, as a long task does
			d := held[len(held)-1]
			held = held[:len(held)-1]
			if err := d.Ack(); err != nil {
				t.Fatal(err)
			}
		}
		for len(held) < limit && len(got) < n {
			d := receive(t, c)
			if got[d.ID] {
				t.Fatalf("%s came twice", d.ID)
			}
			got[d.ID] = true
			held = append(held, d)
		}
	}
	for _, d := range held {
		if err := d.Ack(); err != nil {
			t.Error(err)
		}
	}
}

// A quorum queue marks as redelivered what was on its way to a subscription that is cancelled, and sends each
// subscription its messages in groups. Neither shows when the limit of a busy consumer changes.
func TestAMovingLimitNeitherChargesNorReorders(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"classic", "quorum"} {
		for _, first := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s from %d", kind, first), func(t *testing.T) {
				t.Parallel()
				q := queue(t, amqp.Table{"x-queue-type": kind})
				s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
				const n = 3000
				fill(t, s, q, n)
				c, err := s.Consume(testContext(t), broker.ConsumeOptions{Queue: q, Prefetch: first, MaxPrefetch: 200})
				if err != nil {
					t.Fatal(err)
				}
				all := make(chan struct{})
				go func() {
					defer close(all)
					for i := range n {
						d := receive(t, c)
						if d.Redelivered {
							t.Errorf("%s is marked as redelivered", d.ID)
						}
						if first == 1 && d.ID != fmt.Sprint(i) {
							t.Errorf("%s came as number %d", d.ID, i)
						}
						if err := d.Ack(); err != nil {
							t.Error(err)
						}
					}
				}()
				for i := 0; ; i++ {
					select {
					case <-all:
						t.Logf("the limit was changed %d times", i)
						return
					default:
					}
					limit := []int{200, 1, 50, 0, 7, 120}[i%6]
					if err := c.SetPrefetch(testContext(t), limit); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// Deleting a queue ends a consumer with many subscriptions as quickly as any other consumer.
func TestDeletedQueueEndsAConsumerOfManySubscriptions(t *testing.T) {
	t.Parallel()
	s := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	q := uniqueName()
	if err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: q}}}); err != nil {
		t.Fatal(err)
	}
	const n = 50
	c := consume(t, s, q, n)
	for limit := range n + 1 {
		if err := c.SetPrefetch(testContext(t), limit); err != nil {
			t.Fatal(limit, err)
		}
		if limit == 0 {
			fill(t, s, q, n)
			continue
		}
		receive(t, c)
	}
	if info, err := s.Inspect(testContext(t), q); err != nil || info.Consumers != 1 {
		t.Errorf("%+v, %v: its subscriptions are one consumer", info, err)
	}
	if got, err := foreign(t).QueueDeclarePassive(q, true, false, false, false, nil); err != nil || got.Consumers < 2 {
		t.Errorf("%+v, %v: this test expects several subscriptions", got, err)
	}
	if err := s.Delete(testContext(t), q); err != nil {
		t.Fatal(err)
	}
	wait(t, "the consumer's end", c.Done())
	if err := c.Err(); !errors.Is(err, broker.ErrQueueGone) {
		t.Error(err)
	}
	if _, err := s.Inspect(testContext(t), q); !errors.Is(err, broker.ErrQueueGone) {
		t.Errorf("the session's next call: %v", err)
	}
}

// An ack that waits for others is written soon although no other comes: the broker hands out the next message.
func TestALingeringAckIsWrittenSoon(t *testing.T) {
	t.Parallel()
	s := on(t)
	q := workQueue(t, s)
	fill(t, s, q, 4)
	c := consume(t, s, q, 3)
	d := receive(t, c)
	full := func(n int) {
		t.Helper()
		within(t, "deliveries in the channel", func() {
			for len(c.Deliveries()) < n {
				if _, err := s.Inspect(testContext(t), q); err != nil { // a round trip
					t.Error(err)
					return
				}
			}
		})
	}
	full(2)
	if err := d.Ack(); err != nil {
		t.Fatal(err)
	}
	full(3)
}
