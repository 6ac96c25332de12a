package memory_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func TestRouting(t *testing.T) {
	t.Parallel()
	s := open(t, memory.New())
	topology := broker.Topology{
		Exchanges: []broker.Exchange{{Name: "direct", Kind: broker.Direct}, {Name: "fanout", Kind: broker.Fanout}},
		Queues:    []broker.QueueSpec{{Name: "a"}, {Name: "b"}, {Name: "c"}},
		Bindings: []broker.Binding{
			{Queue: "a", Exchange: "direct", Key: "1"}, {Queue: "a", Exchange: "direct", Key: "1"},
			{Queue: "a", Exchange: "direct", Key: "2"}, {Queue: "b", Exchange: "direct", Key: "2"},
			{Queue: "a", Exchange: "fanout", Key: "1"}, {Queue: "a", Exchange: "fanout", Key: "2"}, {Queue: "c", Exchange: "fanout"},
		},
	}
	ok(t, s.Declare(bg, topology))
	ok(t, s.Declare(bg, topology)) // declaring twice changes nothing
	for _, test := range []struct {
		exchange, key string
		queues        string
	}{
		{"direct", "1", "a"}, {"direct", "2", "ab"}, {"fanout", "any", "ac"}, {"", "b", "b"},
	} {
		ok(t, publish(s, broker.Message{Exchange: test.exchange, RoutingKey: test.key, ID: "m"}))
		var queues string
		for _, q := range []string{"a", "b", "c"} {
			for _, d := range get(t, s, q) {
				queues += q
				ok(t, d.Ack())
			}
		}
		if queues != test.queues {
			t.Errorf("exchange %q key %q reached %q, want %q", test.exchange, test.key, queues, test.queues)
		}
	}
	for _, q := range []string{"a", "b"} {
		ok(t, s.Delete(bg, q))
	}
	if err := publish(s, broker.Message{Exchange: "direct", RoutingKey: "2", ID: "m"}); !errors.Is(err, broker.ErrUnroutable) {
		t.Errorf("publish after the queues were deleted: %v", err)
	}
	ok(t, publish(s, broker.Message{Exchange: "fanout", ID: "m"}))
}

func TestDeclareRefuses(t *testing.T) {
	t.Parallel()
	b := memory.New()
	s, other := open(t, b), open(t, b)
	declare(t, s, "durable")
	ok(t, s.Declare(bg, broker.Topology{
		Exchanges: []broker.Exchange{{Name: "direct", Kind: broker.Direct}},
		Queues:    []broker.QueueSpec{{Name: "mine", Ephemeral: true}},
	}))
	ok(t, other.Declare(bg, broker.Topology{Queues: []broker.QueueSpec{{Name: "theirs", Ephemeral: true}}}))
	long := strings.Repeat("n", 256)
	exchange := func(name string, kind broker.ExchangeKind) broker.Topology {
		return broker.Topology{Exchanges: []broker.Exchange{{Name: name, Kind: kind}}}
	}
	queue := func(q broker.QueueSpec) broker.Topology { return broker.Topology{Queues: []broker.QueueSpec{q}} }
	binding := func(queue, exchange, key string) broker.Topology {
		return broker.Topology{Bindings: []broker.Binding{{Queue: queue, Exchange: exchange, Key: key}}}
	}
	for name, test := range map[string]struct {
		t    broker.Topology
		want error
		text string
	}{
		"other kind":           {exchange("direct", broker.Fanout), broker.ErrRejected, `"direct"`},
		"unknown kind":         {exchange("x", "topic"), errors.ErrUnsupported, `"x"`},
		"default exchange":     {exchange("", broker.Direct), broker.ErrRejected, "default exchange"},
		"long exchange":        {exchange(long, broker.Direct), broker.ErrRejected, long},
		"queue without name":   {queue(broker.QueueSpec{}), broker.ErrRejected, "empty name"},
		"long queue":           {queue(broker.QueueSpec{Name: long}), broker.ErrRejected, long},
		"type of queue":        {queue(broker.QueueSpec{Name: "x", Type: "quorum"}), errors.ErrUnsupported, `"x"`},
		"durable as ephemeral": {queue(broker.QueueSpec{Name: "durable", Ephemeral: true}), broker.ErrRejected, `"durable"`},
		"ephemeral as durable": {queue(broker.QueueSpec{Name: "mine"}), broker.ErrRejected, `"mine"`},
		"short undeliverable":  {queue(broker.QueueSpec{Name: broker.Undeliverable, Ephemeral: true}), broker.ErrRejected, broker.Undeliverable},
		"locked":               {queue(broker.QueueSpec{Name: "theirs", Ephemeral: true}), broker.ErrLocked, `"theirs"`},
		"bind locked":          {binding("theirs", "direct", "k"), broker.ErrLocked, `"theirs"`},
		"bind no queue":        {binding("none", "direct", "k"), broker.ErrRejected, `"none"`},
		"bind no exchange":     {binding("durable", "none", "k"), broker.ErrRejected, `"none"`},
		"bind default":         {binding("durable", "", "k"), broker.ErrRejected, `"durable"`},
		"bind long key":        {binding("durable", "direct", long), broker.ErrRejected, "key is 256 bytes long"},
	} {
		if err := s.Declare(bg, test.t); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v, want %v with %q", name, err, test.want, test.text)
		}
	}
	if s.Err() != nil {
		t.Fatalf("a refused declaration ended the session: %v", s.Err())
	}
}

func TestEphemeralQueueIsALockOfItsSession(t *testing.T) {
	t.Parallel()
	b := memory.New()
	holder, other := open(t, b), open(t, b)
	lock := broker.Topology{Queues: []broker.QueueSpec{{Name: "lock", Ephemeral: true}}}
	ok(t, holder.Declare(bg, lock))
	ok(t, holder.Declare(bg, lock))
	ok(t, publish(other, broker.Message{RoutingKey: "lock", ID: "1"}))
	_, consumeErr := other.Consume(bg, broker.ConsumeOptions{Queue: "lock", Prefetch: 1})
	_, getErr := other.TryGet(bg, "lock", 1)
	_, inspectErr := other.Inspect(bg, "lock")
	_, purgeErr := other.Purge(bg, "lock")
	for _, err := range []error{other.Declare(bg, lock), consumeErr, getErr, inspectErr, purgeErr, other.Delete(bg, "lock")} {
		if !errors.Is(err, broker.ErrLocked) {
			t.Errorf("got %v, want ErrLocked", err)
		}
	}
	c := consume(t, holder, "lock", 1)
	d := next(t, c)
	ok(t, d.Retry(bg, d.Forward(), time.Hour))
	ok(t, holder.Close(bg))
	if _, err := other.Inspect(bg, "lock"); !errors.Is(err, broker.ErrQueueGone) {
		t.Errorf("inspect after the session has ended: %v", err)
	}
	ok(t, other.Declare(bg, lock))
	wantGet(t, other, "lock")
}
