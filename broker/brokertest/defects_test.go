package brokertest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// defects are the defects of publishing, consuming, settling and sessions.
var defects = []defect{
	{
		name: "confirms before routing", area: "publish",
		test: "an unroutable message is rejected and its neighbours are confirmed",
		make: publishing(func(done func(int, error)) func(int, error) {
			return func(i int, err error) { done(i, not(err, broker.ErrUnroutable)) }
		}),
	},
	{
		name: "runs done twice", area: "publish",
		test: "done runs exactly once for every message of a long publish",
		make: publishing(func(done func(int, error)) func(int, error) {
			return func(i int, err error) {
				done(i, err)
				if i == 3000 {
					done(i, err)
				}
			}
		}),
	},
	{
		name: "accepts every declaration", area: "topology",
		test: "an exchange of another kind is refused by name and the session lives",
		make: func() hooks {
			return hooks{declare: func(s broker.Session, ctx context.Context, t broker.Topology) error {
				return not(s.Declare(ctx, t), broker.ErrRejected)
			}}
		},
	},
	{
		name: "loses an ack", area: "settle",
		test: "acked messages are gone for good",
		make: func() hooks {
			var acks counter
			return settling(func(_ broker.Session, d broker.Delivery) settler {
				return settler{ack: func() error {
					if acks.next() == 100 {
						return nil
					}
					return d.Ack()
				}}
			})()
		},
	},
	{
		name: "settles twice", area: "settle",
		test: "a settled delivery cannot be settled again",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{release: func() error { return not(d.Release(), broker.ErrSettled) }}
		}),
	},
	{
		name: "loses a release", area: "settle",
		test: "a released message comes back whole and uncharged",
		make: func() hooks {
			var releases counter
			return settling(func(_ broker.Session, d broker.Delivery) settler {
				return settler{release: func() error {
					if releases.next() == 2 {
						return d.Ack()
					}
					return d.Release()
				}}
			})()
		},
	},
	{
		name: "puts released messages in the order of their release", area: "order",
		test: "released messages are in their old order again",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{release: func() error { return d.Retry(context.Background(), d.Forward(), 0) }}
		}),
	},
	{
		// The x-delivery-count of a quorum queue does this.
		name: "charges a release", area: "settle",
		test: "a released message comes back whole and uncharged",
		make: func() hooks {
			return hooks{deliver: func(d *broker.Delivery) {
				if d.Redelivered {
					d.Losses++
				}
			}}
		},
	},
	{
		name: "drops a message at retry", area: "retry",
		test: "a retry comes back to its own queue only, with what it was given",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{retry: func(context.Context, broker.Message, time.Duration) error { return d.Ack() }}
		}),
	},
	{
		name: "retries through the exchange", area: "retry",
		test: "a retry comes back to its own queue only, with what it was given",
		make: settling(func(s broker.Session, d broker.Delivery) settler {
			return settler{retry: func(ctx context.Context, m broker.Message, _ time.Duration) error {
				s.Publish(ctx, []broker.Message{m}, func(int, error) {})
				return d.Ack()
			}}
		}),
	},
	{
		name: "settles before it has retried", area: "retry",
		test: "a failed retry leaves the delivery open",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{retry: func(ctx context.Context, m broker.Message, delay time.Duration) error {
				if err := ctx.Err(); err != nil {
					_ = d.Ack()
					return err
				}
				return d.Retry(ctx, m, delay)
			}}
		}),
	},
	{
		name: "dead-letters without headers", area: "deadletter",
		test: "a dead letter keeps its content and leaves its queue",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{deadLetter: func(ctx context.Context, m broker.Message) error {
				m.Headers = nil
				return d.DeadLetter(ctx, m)
			}}
		}),
	},
	{
		name: "dead-letters without priority", area: "deadletter",
		test: "a dead letter keeps its content and leaves its queue",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{deadLetter: func(ctx context.Context, m broker.Message) error {
				m.Priority = 0
				return d.DeadLetter(ctx, m)
			}}
		}),
	},
	{
		name: "drops dead letters that have no queue", area: "deadletter",
		test: "without a dead letter queue the delivery stays open until there is one",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			return settler{deadLetter: func(ctx context.Context, m broker.Message) error {
				if err := d.DeadLetter(ctx, m); !errors.Is(err, broker.ErrUnroutable) {
					return err
				}
				return d.Ack()
			}}
		}),
	},
	{
		name: "swaps neighbours", area: "order",
		test: "one consumer receives in the order of publishing",
		make: func() hooks {
			return hooks{publish: func(s broker.Session, ctx context.Context, msgs []broker.Message, done func(int, error)) {
				msgs = slices.Clone(msgs)
				if n := len(msgs); n > 60 {
					msgs[50], msgs[51] = msgs[51], msgs[50]
				}
				s.Publish(ctx, msgs, done)
			}}
		},
	},
	{
		name: "delivers past the prefetch", area: "prefetch",
		test: "no more than Prefetch are handed out",
		make: func() hooks { return hooks{consume: func(o *broker.ConsumeOptions) { o.Prefetch++ }} },
	},
	{
		// basic.qos does this on a live consumer of RabbitMQ.
		name: "ignores SetPrefetch", area: "prefetch",
		test: "a limit of zero pauses until it is raised",
		make: func() hooks {
			return hooks{limit: func(broker.Consumer, context.Context, int) error { return nil }}
		},
	},
	{
		name: "loses what Stop gives back", area: "stop",
		test: "Stop gives back what nobody received and leaves the rest to be settled",
		make: func() hooks { return hooks{stopped: func(d broker.Delivery) { _ = d.Ack() }} },
	},
	{
		name: "acks on receipt", area: "loss",
		test: "unsettled messages come to the next session, each once",
		make: settling(func(_ broker.Session, d broker.Delivery) settler {
			_ = d.Ack()
			return settler{ack: func() error { return not(d.Ack(), broker.ErrSettled) }}
		}),
	},
	{
		name: "confirms what the lost link swallowed", area: "loss",
		test: "a lost link answers every publish once, before Done is closed, and truly",
		make: publishing(func(done func(int, error)) func(int, error) {
			return func(i int, err error) { done(i, not(err, broker.ErrNotSent)) }
		}),
	},
	{
		name: "forgets the publishes of a lost link", area: "loss",
		test: "a lost link answers every publish once, before Done is closed, and truly",
		make: publishing(func(done func(int, error)) func(int, error) {
			return func(i int, err error) {
				if !errors.Is(err, broker.ErrNotSent) {
					done(i, err)
				}
			}
		}),
	},
	{
		name: "lets a late ack reach the next owner", area: "fencing",
		test: "a late ack after a lost link touches nothing",
		make: func() hooks {
			var mu sync.Mutex
			owners := make(map[string]broker.Delivery) // by message ID
			return hooks{settler: func(_ broker.Session, d broker.Delivery) broker.Settler {
				mu.Lock()
				defer mu.Unlock()
				owners[d.ID] = d
				return settler{Settler: d.Settler, ack: func() error {
					err := d.Ack()
					if errors.Is(err, broker.ErrDeliveryLost) {
						mu.Lock()
						defer mu.Unlock()
						_ = owners[d.ID].Ack()
					}
					return err // the true error, so that only the lost message reveals the defect
				}}
			}}
		},
	},
	{
		name: "gives the newest first", area: "pull",
		test: "the oldest come first and at most max",
		make: func() hooks {
			return hooks{tryGet: func(ds []broker.Delivery) []broker.Delivery { slices.Reverse(ds); return ds }}
		},
	},
	{
		name: "gives fewer than are ready", area: "pull",
		test: "fewer than max are all that was ready",
		make: func() hooks {
			return hooks{tryGet: func(ds []broker.Delivery) []broker.Delivery {
				n := min(len(ds), 2)
				for _, d := range ds[n:] {
					_ = d.Release()
				}
				return ds[:n]
			}}
		},
	},
	{
		name: "counts what is handed out as ready", area: "inspect",
		test: "a queue is counted",
		make: func() hooks {
			return hooks{inspect: func(i *broker.QueueInfo) { i.Ready, i.Unsettled = i.Ready+i.Unsettled, -1 }}
		},
	},
	{
		name: "calls its own Close a lost link", area: "session",
		test: "Close ends the session and its consumers, gives back and tells why",
		make: func() hooks { return hooks{err: func(error) error { return errBroken }} },
	},
	{
		name: "keeps ephemeral queues", area: "ephemeral",
		test: "it dies with its session, messages, bindings and all",
		make: func() hooks {
			return hooks{declare: func(s broker.Session, ctx context.Context, t broker.Topology) error {
				t.Queues = slices.Clone(t.Queues)
				for i := range t.Queues {
					t.Queues[i].Ephemeral = false
				}
				return s.Declare(ctx, t)
			}}
		},
	},
	{
		name: "routes fanout by key", area: "fanout",
		test: "every bound queue gets a message once, whatever the keys",
		make: func() hooks {
			return hooks{declare: func(s broker.Session, ctx context.Context, t broker.Topology) error {
				t.Exchanges = slices.Clone(t.Exchanges)
				for i := range t.Exchanges {
					t.Exchanges[i].Kind = broker.Direct
				}
				return s.Declare(ctx, t)
			}}
		},
	},
	{
		name: "forgets its queues at a restart", area: "restart",
		test: "confirmed messages survive a restart, with their queues and bindings",
		make: func() hooks {
			var mu sync.Mutex
			var queues []string
			return hooks{
				declare: func(s broker.Session, ctx context.Context, t broker.Topology) error {
					mu.Lock()
					defer mu.Unlock()
					for _, q := range t.Queues {
						queues = append(queues, q.Name)
					}
					return s.Declare(ctx, t)
				},
				restart: func(s broker.Session) {
					mu.Lock()
					defer mu.Unlock()
					for _, q := range queues {
						_, _ = s.Purge(context.Background(), q)
					}
				},
			}
		},
	},
}

// counter counts calls from 1.
type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) next() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}
