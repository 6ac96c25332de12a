package brokertest

import (
	"fmt"
	"maps"
	"slices"

	"github.com/seed-416683c9/dispatcher/broker"
)

// name returns a name that no other test has. When the test ends, the queue of that name and those that belong to it
// are deleted.
func (k *kit) name(s string) string {
	name := k.prefix + s
	k.queues = append(k.queues, name, name+broker.DeadSuffix, name+broker.SuspectsSuffix)
	return name
}

// queue declares a queue. The default exchange routes to it by its name.
func (k *kit) queue(s string) string {
	k.Helper()
	q := k.name(s)
	k.declare(broker.Topology{Queues: []broker.QueueSpec{{Name: q}}})
	return q
}

// queueAndDead declares a queue and its queue of dead letters.
func (k *kit) queueAndDead(s string) (queue, dead string) {
	k.Helper()
	q := k.queue(s)
	k.declare(broker.Topology{Queues: []broker.QueueSpec{{Name: q + broker.DeadSuffix}}})
	return q, q + broker.DeadSuffix
}

// family declares a queue and all the queues that belong to it.
func (k *kit) family(s string) (queue, dead, suspects string) {
	k.Helper()
	q, dead := k.queueAndDead(s)
	k.declare(broker.Topology{Queues: []broker.QueueSpec{{Name: q + broker.SuspectsSuffix}}})
	return q, dead, q + broker.SuspectsSuffix
}

func (k *kit) declare(t broker.Topology) {
	k.Helper()
	k.must("declare", k.s.Declare(k.ctx, t))
}

// bind binds queues to one key of the shared direct exchange.
func (k *kit) bind(key string, queues ...string) {
	k.Helper()
	t := broker.Topology{Exchanges: []broker.Exchange{{Name: directExchange, Kind: broker.Direct}}}
	for _, q := range queues {
		t.Bindings = append(t.Bindings, broker.Binding{Queue: q, Exchange: directExchange, Key: key})
	}
	k.declare(t)
}

// message returns a small message for a queue. Its body is its id.
func message(queue, id string) broker.Message {
	return broker.Message{RoutingKey: queue, ID: id, Body: []byte(id)}
}

// messages returns n small messages with the ids m0000, m0001, …
func messages(queue string, n int) []broker.Message {
	msgs := make([]broker.Message, n)
	for i := range msgs {
		msgs[i] = message(queue, fmt.Sprintf("m%04d", i))
	}
	return msgs
}

func ids(msgs []broker.Message) []string {
	s := make([]string, len(msgs))
	for i, m := range msgs {
		s[i] = m.ID
	}
	return s
}

// publish publishes msgs and returns the outcome of every message.
func (k *kit) publish(s broker.Session, msgs ...broker.Message) []error {
	k.Helper()
	o := newOutcomes(len(msgs))
	k.returns("Publish", func() { s.Publish(k.ctx, msgs, o.done) })
	k.wait("the outcome of every message", o.all)
	return o.errs
}

// send publishes messages and fails the test unless all are confirmed.
func (k *kit) send(msgs ...broker.Message) {
	k.Helper()
	for i, err := range k.publish(k.s, msgs...) {
		if err != nil {
			k.Fatalf("publish of message %q: %v", msgs[i].ID, err)
		}
	}
}

func (k *kit) consume(s broker.Session, queue string, prefetch int) broker.Consumer {
	k.Helper()
	c, err := s.Consume(k.ctx, broker.ConsumeOptions{Queue: queue, Prefetch: prefetch})
	k.must("consume", err)
	return c
}

// receive returns the next delivery.
func (k *kit) receive(c broker.Consumer) broker.Delivery {
	k.Helper()
	select {
	case d, ok := <-c.Deliveries():
		if !ok {
			k.Fatalf("the consumer ended instead of delivering: %v", c.Err())
		}
		return d
	case <-k.ctx.Done():
		k.Fatal("timed out waiting for a delivery")
	}
	panic("unreachable")
}

func (k *kit) receiveN(c broker.Consumer, n int) []broker.Delivery {
	k.Helper()
	ds := make([]broker.Delivery, n)
	for i := range ds {
		ds[i] = k.receive(c)
	}
	return ds
}

// take pulls n messages, with as many calls as needed.
func (k *kit) take(s broker.Session, queue string, n int) []broker.Delivery {
	k.Helper()
	var ds []broker.Delivery
	k.eventually(fmt.Sprintf("TryGet to give %d messages", n), func() bool {
		more, err := s.TryGet(k.ctx, queue, n-len(ds))
		k.must("TryGet", err)
		ds = append(ds, more...)
		return len(ds) >= n
	})
	return ds
}

// left consumes and acks all messages of a queue and returns their ids in order of arrival. It waits for all of want
// and then reads up to a marker of its own, which proves that nothing else was ready. Sessions that held messages must
// have ended.
func (k *kit) left(queue string, want ...string) []string {
	k.Helper()
	const marker = "the end of the queue"
	s := k.open()
	c := k.consume(s, queue, 100)
	missing := make(map[string]bool, len(want))
	for _, id := range want {
		missing[id] = true
	}
	var got []string
	defer func() {
		if len(missing) > 0 { // receive ended the test
			k.Logf("queue %s delivered %d messages, but not these: %q",
				queue, len(got), slices.Sorted(maps.Keys(missing)))
		}
	}()
	for sent := false; ; {
		if len(missing) == 0 && !sent {
			k.ok("publish the marker", k.publish(s, message(queue, marker))[0])
			sent = true
		}
		d := k.receive(c)
		k.ok("ack", d.Ack())
		if d.ID == marker {
			break
		}
		got = append(got, d.ID)
		delete(missing, d.ID)
	}
	k.close(s)
	return got
}

// expectLeft checks that exactly these messages are in a queue, each once, in any order, and removes them.
func (k *kit) expectLeft(queue string, want ...string) {
	k.Helper()
	got := k.left(queue, want...)
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		k.Errorf("in queue %s: got %q, want %q", queue, got, want)
	}
}

// expectIDs checks the ids of deliveries, in order.
func (k *kit) expectIDs(ds []broker.Delivery, want ...string) {
	k.Helper()
	var got []string
	for _, d := range ds {
		got = append(got, d.ID)
	}
	if !slices.Equal(got, want) {
		k.Errorf("got messages %q, want %q", got, want)
	}
}

// rest waits until a consumer ends and returns the deliveries left in its channel. The channel must be closed by then.
func (k *kit) rest(c broker.Consumer) []broker.Delivery {
	k.Helper()
	k.wait("the consumer's Done", c.Done())
	var ds []broker.Delivery
	for {
		select {
		case d, ok := <-c.Deliveries():
			if !ok {
				return ds
			}
			ds = append(ds, d)
		default:
			k.Fatal("the consumer has ended, but its Deliveries are not closed")
		}
	}
}

// expectEnd checks that a consumer ends. Deliveries may be left in its channel, but cannot be settled.
func (k *kit) expectEnd(c broker.Consumer) {
	k.Helper()
	for _, d := range k.rest(c) {
		k.is("ack of a delivery of a dead consumer", d.Ack(), broker.ErrDeliveryLost)
	}
}
