package brokertest

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// delayDefects are the defects of the area "delay".
var delayDefects = []defect{
	{
		name: "ignores the delay", area: "delay",
		test: "every delayed message comes once and never early",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{retry: func(ctx context.Context, m broker.Message, _ time.Duration) error { return d.Retry(ctx, m, 0) }}
		}),
	},
	{
		name: "delays a little less", area: "delay",
		test: "every delayed message comes once and never early",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{retry: func(ctx context.Context, m broker.Message, delay time.Duration) error {
				return d.Retry(ctx, m, delay-50*time.Millisecond)
			}}
		}),
	},
	{
		name: "ignores the delay, having none", area: "delay",
		test: "a broker without delays says so and leaves the delivery open",
		make: func() hooks {
			h := modest()
			h.settler = nil
			return h
		},
	},
	{
		name: "delays nothing that is published", area: "delay",
		test: "a delayed publish comes whole, to every queue of its key only, and not before",
		make: delaying(func(_ broker.Session, m *broker.Message) (bool, error) {
			m.NotBefore = time.Time{}
			return false, nil
		}),
	},
	{
		name: "delivers a delayed publish early", area: "delay",
		test: "delayed publishes come once each and never early, however many",
		make: delaying(func(_ broker.Session, m *broker.Message) (bool, error) {
			m.NotBefore = m.NotBefore.Add(-50 * time.Millisecond)
			return false, nil
		}),
	},
	{
		name: "delays through another exchange", area: "delay",
		test: "a delayed publish to the default exchange goes to the queue of that name",
		make: delaying(func(_ broker.Session, m *broker.Message) (bool, error) {
			m.Exchange = directExchange
			return false, nil
		}),
	},
	{
		name: "cuts a delay above the limit", area: "delay",
		test: "a delay above the limit is refused and touches nothing",
		make: delaying(func(_ broker.Session, m *broker.Message) (bool, error) {
			if limit := time.Now().Add(broker.MaxDelay); m.NotBefore.After(limit) {
				m.NotBefore = limit
			}
			return false, nil
		}),
	},
	{
		// Per-message TTLs do this, because messages expire only at the head of a queue.
		name: "holds what is published up behind a long delay", area: "delay",
		test: "a delay of 300 days is taken and holds nobody up",
		make: func() hooks {
			var head atomic.Pointer[time.Time]
			return delaying(func(_ broker.Session, m *broker.Message) (bool, error) {
				if time.Until(m.NotBefore) > 24*time.Hour {
					head.Store(&m.NotBefore)
				} else if long := head.Load(); long != nil {
					m.NotBefore = *long
				}
				return false, nil
			})()
		},
	},
	{
		name: "keeps delayed publishes in their session", area: "delay",
		test: "delayed publishes outlive the session that published them",
		make: delaying(func(s broker.Session, m *broker.Message) (bool, error) {
			late := *m
			late.NotBefore = time.Time{}
			time.AfterFunc(time.Until(m.NotBefore), func() {
				s.Publish(context.Background(), []broker.Message{late}, func(int, error) {})
			})
			return true, nil
		}),
	},
	{
		name: "routes a delayed message when it is published", area: "delay",
		test: "queues that are declared and bound after a delayed publish take it",
		make: delaying(func(s broker.Session, m *broker.Message) (bool, error) {
			return isGone(s, m.RoutingKey), broker.ErrUnroutable
		}),
	},
	{
		name: "drops what no queue takes", area: "delay",
		test: "what no queue takes when it is due is undeliverable, whole, and holds nobody up",
		make: delaying(func(s broker.Session, m *broker.Message) (bool, error) {
			return m.Exchange == "" && isGone(s, m.RoutingKey), nil
		}),
	},
	{
		name: "forgets the route of what is undeliverable", area: "delay",
		test: "what was delayed for a queue that is gone when it is due is undeliverable",
		make: func() hooks {
			return hooks{deliver: func(d *broker.Delivery) {
				if d.Queue == broker.Undeliverable {
					d.Exchange, d.RoutingKey = "", d.Queue
				}
			}}
		},
	},
	{
		name: "ignores a NotBefore, having no delays", area: "delay",
		test: "a broker without delays says so of a publish and takes its neighbours",
		make: func() hooks {
			h := modest()
			h.publish = nil
			return h
		},
	},
}

func isGone(s broker.Session, queue string) bool {
	_, err := s.Inspect(context.Background(), queue)
	return errors.Is(err, broker.ErrQueueGone)
}
