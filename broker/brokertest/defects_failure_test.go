package brokertest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// failureDefects are the defects in handling failed tasks: retries, suspects and the accounting of crashes.
var failureDefects = []defect{
	{
		name: "retries a suspect among the suspects", area: "retry",
		test: "a retry of a suspect returns to the queue it is a suspect of",
		make: settling(func(s broker.Session, d broker.Delivery) settler {
			return settler{retry: func(ctx context.Context, m broker.Message, _ time.Duration) error {
				if err := sendTo(ctx, s, d.Queue, m); err != nil {
					return err
				}
				return d.Ack()
			}}
		}),
	},
	{
		name: "drops a suspect that cannot be retried", area: "retry",
		test: "a suspect whose queue is gone cannot be retried and stays open",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{retry: func(ctx context.Context, m broker.Message, delay time.Duration) error {
				if err := d.Retry(ctx, m, delay); !errors.Is(err, broker.ErrUnroutable) {
					return err
				}
				return d.Ack()
			}}
		}),
	},
	{
		name: "suspects into the queue itself", area: "suspect",
		test: "a suspect goes to the suspects of its queue only, whole",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{suspect: func(ctx context.Context, m broker.Message) error { return d.Retry(ctx, m, 0) }}
		}),
	},
	{
		name: "leaves a suspect of a suspect where it is", area: "suspect",
		test: "a suspect of a suspect goes to the back of the same queue",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{suspect: func(ctx context.Context, m broker.Message) error {
				if isSuspect(d) {
					return d.Release()
				}
				return d.Suspect(ctx, m)
			}}
		}),
	},
	{
		name: "drops suspects that have no queue", area: "suspect",
		test: "without a queue of suspects the delivery stays open until there is one",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{suspect: func(ctx context.Context, m broker.Message) error {
				if err := d.Suspect(ctx, m); !errors.Is(err, broker.ErrUnroutable) {
					return err
				}
				return d.Ack()
			}}
		}),
	},
	{
		name: "dead-letters a suspect to .suspects.dead", area: "suspect",
		test: "a dead letter of a suspect is one of the queue it is a suspect of",
		make: settling(func(s broker.Session, d broker.Delivery) settler {
			return settler{deadLetter: func(ctx context.Context, m broker.Message) error {
				if err := sendTo(ctx, s, d.Queue+broker.DeadSuffix, m); err != nil {
					return err
				}
				return d.Ack()
			}}
		}),
	},
	{
		name: "drops text headers at retry", area: "expiry",
		test: "what says that a message expires survives a retry",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{retry: func(ctx context.Context, m broker.Message, delay time.Duration) error {
				for name, v := range m.Headers {
					if _, ok := v.(string); ok {
						delete(m.Headers, name)
					}
				}
				return d.Retry(ctx, m, delay)
			}}
		}),
	},
	{
		name: "tells times in whole seconds", area: "expiry",
		test: "what says that a message expires survives a dead letter",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{deadLetter: func(ctx context.Context, m broker.Message) error {
				for name, v := range m.Headers {
					if at, ok := headerTime(v); ok {
						m.Headers[name] = at.Format(time.RFC3339)
					}
				}
				return d.DeadLetter(ctx, m)
			}}
		}),
	},
	{
		name: "drops what has expired", area: "expiry",
		test: "what says that a message expires survives a delayed publish",
		make: delaying(func(_ broker.Session, m *broker.Message) (bool, error) {
			at, ok := headerTime(m.Headers["x-dispatcher-expires-at"])
			return ok && time.Until(at) < 0, nil
		}),
	},
	{
		name: "charges a copy", area: "crash",
		test: "the past of a message ends with a suspect",
		make: func() hooks {
			return hooks{deliver: func(d *broker.Delivery) {
				if isSuspect(*d) {
					d.Losses++
				}
			}}
		},
	},
	{
		// Until RabbitMQ 4.0, the delivery count of a quorum queue does this.
		name: "counts what is given back as lost", area: "crash",
		test: "what is given back after a loss is charged that one only",
		make: func() hooks {
			var handed counts
			return hooks{deliver: func(d *broker.Delivery) { d.Losses = handed.next(d.Queue+" "+d.ID) - 1 }}
		},
	},
	{
		name: "marks what nobody had", area: "crash",
		test: "a lost session is charged to what it has pulled and to nothing behind it",
		make: func() hooks {
			return hooks{deliver: func(d *broker.Delivery) { d.Redelivered = d.Redelivered || isSuspect(*d) }}
		},
	},
	{
		// A delivery limit does this.
		name: "drops after 10 losses", area: "crash",
		test: "what is lost again and again is still there",
		make: func() hooks {
			var handed counts
			return hooks{settler: func(_ broker.Session, d broker.Delivery) broker.Settler {
				if handed.next(d.Queue+" "+d.ID) > 10 {
					_ = d.Ack()
				}
				return d.Settler
			}}
		},
	},
}

func isSuspect(d broker.Delivery) bool { return strings.HasSuffix(d.Queue, broker.SuspectsSuffix) }

// headerTime parses a header that holds a time as text.
func headerTime(v any) (time.Time, bool) {
	text, _ := v.(string)
	at, err := time.Parse(time.RFC3339Nano, text)
	return at, err == nil
}

// counts counts calls from 1, separately for each name.
type counts struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counts) next(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = make(map[string]int)
	}
	c.n[name]++
	return c.n[name]
}
