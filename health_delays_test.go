package dispatcher_test

import (
	"context"
	"testing"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// tardy is a broker that says that its delays are late.
type tardy struct{ broker.Broker }

type tardySession struct{ broker.Session }

func (b tardy) Open(ctx context.Context) (broker.Session, error) {
	s, err := b.Broker.Open(ctx)
	return tardySession{s}, err
}

func (tardySession) Status() broker.Status { return broker.Status{Delays: "since noon"} }

func TestHealthSaysThatDelaysAreLate(t *testing.T) {
	t.Parallel()
	late := newRig(t, func(c *dispatcher.ServerConfig) { c.Broker = tardy{c.Broker} })
	if h := late.server.Health(t.Context()); h.Delays != "since noon" || !h.OK() {
		t.Errorf("health %+v", h)
	}
	if h := newRig(t).server.Health(t.Context()); h.Delays != "" {
		t.Errorf("health %+v", h)
	}
}
