package dispatcher_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// outboxOf returns the outbox of a server that kept these entries before it ended.
func outboxOf(t *testing.T, entries ...dispatcher.OutboxEntry) *dispatcher.MemoryOutbox {
	t.Helper()
	o := dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})
	for _, e := range entries {
		e.Name, e.Body = "n", []byte("{}")
		if err := o.Add(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func TestAnEntryGoesToTheExchangeItWasAcceptedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		topology := broker.Topology{
			Exchanges: []broker.Exchange{{Name: "old", Kind: broker.Direct}},
			Queues:    []broker.QueueSpec{{Name: "old-jobs"}},
			Bindings:  []broker.Binding{{Queue: "old-jobs", Exchange: "old", Key: "jobs"}},
		}
		if err := r.session().Declare(t.Context(), topology); err != nil {
			t.Fatal(err)
		}
		outbox := outboxOf(t,
			dispatcher.OutboxEntry{UUID: "old", RoutingKey: "jobs", Exchange: "old", ContentType: "application/cbor"},
			dispatcher.OutboxEntry{UUID: "gone", RoutingKey: "jobs", Exchange: "deleted", ContentType: "application/json"},
			dispatcher.OutboxEntry{UUID: "older", RoutingKey: "jobs"}, // of a program that stored neither
			dispatcher.OutboxEntry{UUID: "new", RoutingKey: "jobs", Exchange: "jobs", ContentType: "application/json"},
		)
		server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
			Broker: r.chaos, Exchange: "jobs", DefaultRoutingKey: "jobs", Logger: r.log, Outbox: outbox,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		eventuallyWithin(t, time.Hour, "all is sent", func() bool { return server.Health(t.Context()).Outbox.Entries == 0 })
		for queue, want := range map[string]string{"old-jobs": "old application/cbor", "jobs": "older application/json new application/json"} {
			ds, err := r.session().TryGet(t.Context(), queue, 10)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range ds {
				got = append(got, d.ID, d.ContentType)
			}
			if got := strings.Join(got, " "); got != want {
				t.Errorf("%s: got %q, want %q", queue, got, want)
			}
		}
		// A server knows nothing of the bindings of another exchange, so it does not make one and wait.
		dead := outbox.Dead()
		if len(dead) != 1 || dead[0].UUID != "gone" || !strings.Contains(dead[0].Refused, "exchange does not exist") {
			t.Errorf("dead %+v", dead)
		}
	})
}

func TestADeadEntryThatIsRetriedIsSentByTheRunningServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		outbox := dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})
		refuse := true
		r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) { c.Outbox = outbox }, script(func(broker.Message) error {
			if refuse {
				return broker.ErrRejected
			}
			return nil
		}))
		down(r, true)
		kept(t, "publish", r.server.Publish(named("1", "jobs")))
		kept(t, "publish", r.server.Publish(named("2", "jobs")))
		up(r)
		drained(t, r)
		synctest.Wait()
		refuse = false
		dead := outbox.Dead()
		if len(dead) != 2 {
			t.Fatalf("dead %+v", dead)
		}
		if !outbox.RetryDead(dead[1]) || outbox.RetryDead(dead[1]) || !outbox.RemoveDead(dead[0]) || outbox.RemoveDead(dead[0]) {
			t.Error("each entry is there once")
		}
		drained(t, r)
		if got := strings.Join(r.ids("jobs"), " "); got != "2" {
			t.Errorf("got %s", got)
		}
		if n := len(outbox.Dead()); n != 0 {
			t.Errorf("%d dead", n)
		}
	})
}
