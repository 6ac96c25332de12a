package rabbitmq_test

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

var campaignSize = flag.Int("campaign", 2000, "number of delayed messages for the queue that is deleted while they become due")

// passOnAnew is the code that docs/rabbitmq.md tells an operator to run when delays are late.
const passOnAnew = `[begin Q = element(2, sys:get_state(P)), supervisor:terminate_child(rabbit_fifo_dlx_sup, P),
	supervisor:start_child(rabbit_fifo_dlx_sup, [Q]) end || {_, P, _, _} <- supervisor:which_children(rabbit_fifo_dlx_sup), is_pid(P)].`

// foreign returns a channel of another program.
func (n *node) foreign(t testing.TB) *amqp.Channel {
	t.Helper()
	c, err := amqp.Dial(n.url.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ch, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// An operator cancels a campaign by deleting its queue while its messages become due. The messages that RabbitMQ is
// passing on at that moment block their exit for minutes, and nothing else.
func testDeletedTarget(t *testing.T, n *node) {
	s := rabbitmq.WithProbes(open(t, n.broker(t)), 500*time.Millisecond, 5*time.Second)
	doomed, other := workQueue(t, s), workQueue(t, s)
	for rabbitmq.ExitOf(other) == rabbitmq.ExitOf(doomed) {
		other = workQueue(t, s)
	}
	campaign, prefix := *campaignSize, uniqueName()
	at := time.Now().Add(3*time.Second + time.Duration(campaign)*time.Millisecond/4)
	msgs := make([]broker.Message, campaign)
	for i := range msgs {
		msgs[i] = broker.Message{RoutingKey: doomed, ID: fmt.Sprint(prefix, i), NotBefore: at}
	}
	const bystanders = 100
	dues := make(map[string]time.Time, bystanders)
	for i := range bystanders {
		id := fmt.Sprint(i)
		dues[id] = at.Add(time.Duration(i) * 50 * time.Millisecond)
		msgs = append(msgs, broker.Message{RoutingKey: other, ID: id, NotBefore: dues[id]})
	}
	published(t, s, msgs...)
	c, ch := consume(t, s, other, bystanders), n.foreign(t)
	came := func() int {
		q, err := ch.QueueDeclarePassive(doomed, true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		return q.Messages
	}
	for tick := time.Tick(time.Millisecond); came() < campaign*9/20; <-tick {
	}
	gone, err := ch.QueueDelete(doomed, false, false, false)
	if err != nil {
		t.Fatal(err)
	}
	var late []time.Duration
	for range bystanders {
		d := receive(t, c)
		late = append(late, time.Since(dues[d.ID]))
		if err := d.Ack(); err != nil {
			t.Error(err)
		}
	}
	slices.Sort(late)
	t.Logf("deleted with %d of %d messages; the others came %v, %v, %v late (least, median, most)", gone, campaign, late[0], late[bystanders/2], late[bystanders-1])
	if late[0] < 0 || late[bystanders-1] > 20*time.Second {
		t.Errorf("the others came %v to %v late", late[0], late[bystanders-1])
	}

	// RabbitMQ tries to pass on those messages again after three to six minutes, or when the code from docs/rabbitmq.md
	// runs.
	found := make(map[string]bool)
	collect := func(quiet time.Duration) {
		for again := time.Now().Add(quiet); time.Now().Before(again) && gone+len(found) < campaign; {
			ds, err := s.TryGet(testContext(t), broker.Undeliverable, 500)
			if err != nil && !errors.Is(err, broker.ErrQueueGone) {
				t.Fatal(err)
			}
			for _, d := range ds {
				found[d.ID] = true
				_ = d.Ack()
			}
			if len(ds) > 0 {
				again = time.Now().Add(quiet)
			}
		}
	}
	collect(time.Second)
	held := campaign - gone - len(found)
	t.Logf("%d are held up in their exit", held)
	ctx := testContext(t)
	// An exit passes on 32 messages at a time. It depends on chance how many of them were on their way when the queue
	// was deleted.
	if held >= 32 {
		// The session notices it with its probes.
		name := func(queue string) string { return "dispatcher.delay.v2.exit." + rabbitmq.ExitOf(queue) }
		for tick := time.Tick(10 * time.Millisecond); !strings.Contains(s.Status().Delays, name(doomed)); <-tick {
			if ctx.Err() != nil {
				t.Fatalf("Status reports the delays as %q, without the exit", s.Status().Delays)
			}
		}
		if told := s.Status().Delays; strings.Contains(told, name(other)) {
			t.Errorf("Status reports the other queue's exit as late: %s", told)
		} else {
			t.Log(told)
		}
	}
	n.run("eval", passOnAnew)
	collect(20 * time.Second)
	if gone+len(found) < campaign {
		t.Errorf("%d were in the deleted queue, %d were undeliverable, and %d are lost", gone, len(found), campaign-gone-len(found))
	}
	for tick := time.Tick(10 * time.Millisecond); s.Status().Delays != ""; <-tick {
		if ctx.Err() != nil {
			t.Fatalf("Status still reports the delays as %q", s.Status().Delays)
		}
	}
	for id := range found {
		if !strings.HasPrefix(id, prefix) {
			t.Errorf("undeliverable: %q", id)
		}
	}
}
