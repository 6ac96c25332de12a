package rabbitmq_test

import (
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// linked is a broker behind a proxy that can cut its connections.
type linked struct {
	*rabbitmq.Broker
	proxy *brokertest.Proxy
}

func TestConformance(t *testing.T) {
	t.Parallel()
	u := amqpURL(t)
	brokertest.Run(t, brokertest.Harness{
		New: func(tb testing.TB) broker.Broker {
			proxy := brokertest.NewProxy(tb, u.Host)
			return &linked{through(tb, u, proxy.Addr()), proxy}
		},
		Kill: func(_ testing.TB, b broker.Broker) { b.(*linked).proxy.Cut() },
	})
}
