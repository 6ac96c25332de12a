package memory_test

import (
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	kill := func(_ testing.TB, b broker.Broker) { b.(*memory.Broker).KillSessions() }
	brokertest.Run(t, brokertest.Harness{
		New:     func(testing.TB) broker.Broker { return memory.New() },
		Kill:    kill,
		Restart: kill, // queues outlive sessions, so a restart looks like the loss of all sessions
	})
}
