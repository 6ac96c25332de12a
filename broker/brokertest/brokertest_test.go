package brokertest

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func TestMain(m *testing.M) {
	if os.Getenv(defectVariable) != "" {
		// A test of a broken broker waits in vain and may leak goroutines. So patience is short, and leaks are not
		// checked.
		patience = 2 * time.Second
		os.Exit(m.Run())
	}
	goleak.VerifyTestMain(m)
}

func TestMemoryPassesTheSuite(t *testing.T) {
	t.Parallel()
	kill := func(_ testing.TB, b broker.Broker) { b.(*memory.Broker).KillSessions() }
	Run(t, Harness{
		New:  func(testing.TB) broker.Broker { return memory.New() },
		Kill: kill,
		// The embedded broker does not outlive its process, so this only exercises the tests of the area.
		Restart: kill,
	})
}

// A broker without any optional capability passes too, if it says so.
func TestBrokerWithoutCapabilitiesPassesTheSuite(t *testing.T) {
	t.Parallel()
	Run(t, Harness{
		New:  func(testing.TB) broker.Broker { return &broken{Broker: memory.New(), hooks: modest()} },
		Kill: func(_ testing.TB, b broker.Broker) { b.(*broken).KillSessions() },
	})
}

// modest returns the hooks of a broker that offers none of the Capabilities.
func modest() hooks {
	return hooks{
		caps: func(c *broker.Capabilities) { *c = broker.Capabilities{} },
		declare: func(s broker.Session, ctx context.Context, t broker.Topology) error {
			if slices.ContainsFunc(t.Exchanges, func(x broker.Exchange) bool { return x.Kind == broker.Fanout }) ||
				slices.ContainsFunc(t.Queues, func(q broker.QueueSpec) bool { return q.Ephemeral }) {
				return errors.ErrUnsupported
			}
			return s.Declare(ctx, t)
		},
		publish: delaying(func(broker.Session, *broker.Message) (bool, error) { return true, errors.ErrUnsupported })().publish,
		settler: func(_ broker.Session, d broker.Delivery) broker.Settler {
			return settler{Settler: d.Settler, retry: func(ctx context.Context, m broker.Message, delay time.Duration) error {
				if delay > 0 && !closed(d.Lost()) {
					return errors.ErrUnsupported
				}
				return d.Retry(ctx, m, delay)
			}}
		},
	}
}
