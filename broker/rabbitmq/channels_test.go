package rabbitmq_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// When a connection has as many consumers as it can have, everything else still works. One more consumer is refused
// with the reason.
func TestConsumersLeaveChannelsForOtherCalls(t *testing.T) {
	t.Parallel()
	u := *amqpURL(t)
	u.RawQuery = "channel_max=16" // half of the channels are kept for other calls
	s := open(t, newBroker(t, rabbitmq.Config{URLs: []string{u.String()}}))
	q := queue(t, nil)
	fill(t, s, q, 20)
	if full := s.Status().Channels; full != "" {
		t.Errorf("the session is full without a consumer: %s", full)
	}
	var consumers []broker.Consumer
	for range 8 {
		consumers = append(consumers, consume(t, s, q, 1))
	}
	ctx := testContext(t)
	_, err := s.Consume(ctx, broker.ConsumeOptions{Queue: q, Prefetch: 1})
	for _, want := range []string{"8 of 16 channels", "another server", "channel_max"} {
		if !errors.Is(err, broker.ErrRejected) || !strings.Contains(err.Error(), want) {
			t.Errorf("consume beyond the limit: %v, want %q", err, want)
		}
	}
	if full := s.Status().Channels; !strings.Contains(full, "8 of 16") {
		t.Errorf("status: %q", full)
	}
	if err := s.Declare(ctx, broker.Topology{Queues: []broker.QueueSpec{{Name: q}}}); err != nil {
		t.Errorf("declare: %v", err)
	}
	if _, err := s.Inspect(ctx, q); err != nil {
		t.Errorf("inspect: %v", err)
	}
	var held []broker.Delivery
	for range 2 { // the other two channels for TryGet are kept for calls that want one message
		ds, err := s.TryGet(ctx, q, 2)
		if err != nil || len(ds) == 0 {
			t.Fatalf("get: %d, %v", len(ds), err)
		}
		held = append(held, ds...)
	}
	if _, err := s.TryGet(ctx, q, 2); err == nil || !strings.Contains(err.Error(), "settle some") {
		t.Errorf("get some beyond the limit: %v", err)
	}
	for range 2 {
		ds, err := s.TryGet(ctx, q, 1)
		if err != nil || len(ds) != 1 {
			t.Fatalf("get one: %d, %v", len(ds), err)
		}
		held = append(held, ds...)
	}
	if _, err := s.TryGet(ctx, q, 1); err == nil || !strings.Contains(err.Error(), "8 consumers") {
		t.Errorf("get one beyond the limit: %v", err)
	}
	for _, d := range held {
		if err := d.Ack(); err != nil {
			t.Error(err)
		}
	}
	if ds, err := s.TryGet(ctx, q, 2); err != nil || len(ds) == 0 { // it waits until the earlier lanes have ended
		t.Errorf("get after settling: %d, %v", len(ds), err)
	}
	if err := consumers[0].Close(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range 3 * 16 { // refused calls and closed consumers give their channels back
		c, err := s.Consume(ctx, broker.ConsumeOptions{Queue: q, Prefetch: 1, Tag: fmt.Sprint(i)})
		if err != nil {
			t.Fatalf("consumer %d in the place of another: %v", i, err)
		}
		if err := c.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Consume(ctx, broker.ConsumeOptions{Queue: uniqueName(), Prefetch: 1}); !errors.Is(err, broker.ErrQueueGone) {
			t.Fatalf("consume a missing queue: %v", err)
		}
		if _, err := s.TryGet(ctx, uniqueName(), 1); !errors.Is(err, broker.ErrQueueGone) {
			t.Fatalf("get from a missing queue: %v", err)
		}
	}
}
