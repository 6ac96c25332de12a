package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// node is a RabbitMQ of the test's own. The test may stop, block and configure it.
type node struct {
	testing.TB
	url     *url.URL
	ctl     string
	brokers func(verb string) string // scripts/brokers.sh for this node
}

// afterKill are the settings of a node that is started again. Messages that become due while it boots, and find no
// queue, are tried again after this time. The default is three minutes.
const afterKill = "[{rabbit,[{dead_letter_worker_publisher_confirm_timeout,5000}]}]."

// newNode starts a node, or skips the test.
func newNode(t testing.TB) *node {
	t.Helper()
	if os.Getenv("DISPATCHER_TEST_NODES") != "1" {
		t.Skip("needs DISPATCHER_TEST_NODES=1, and starts a RabbitMQ of its own")
	}
	dir, settings := t.TempDir(), ""
	brokers := func(verb string) string {
		cmd := exec.Command("../../scripts/brokers.sh", verb, dir)
		cmd.Env = append(os.Environ(), "DISPATCHER_AMQP_CON=", "DISPATCHER_BROKERS_ERL="+settings)
		settings = afterKill
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("brokers.sh %s: %v\n%s", verb, err, stderr.String())
		}
		return string(out)
	}
	t.Cleanup(func() { brokers("stop") })
	n := &node{TB: t, brokers: brokers}
	for line := range strings.Lines(brokers("start")) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), "="); name {
		case "DISPATCHER_AMQP_CON":
			n.url, _ = url.Parse(value)
		case "DISPATCHER_RABBITMQCTL":
			n.ctl = value
		}
	}
	return n
}

// run calls rabbitmqctl.
func (n *node) run(args ...string) {
	n.Helper()
	if out, err := exec.Command(n.ctl, args...).CombinedOutput(); err != nil {
		n.Errorf("rabbitmqctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (n *node) broker(t testing.TB) *rabbitmq.Broker { return through(t, n.url, n.url.Host) }

// as returns a broker for another user and virtual host.
func (n *node) as(t testing.TB, user, vhost string) *rabbitmq.Broker {
	u := *n.url
	u.User, u.Path = url.UserPassword(user, "hush"), "/"+vhost
	return newBroker(t, rabbitmq.Config{URLs: []string{u.String()}})
}

// One node serves all these tests, one after another, because a boot takes longer than any of them.
func TestOwnNode(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	t.Run("makes levels", func(t *testing.T) { testLevels(t, n) })
	t.Run("makes deleted levels again", func(t *testing.T) { testDeletedLevel(t, n) })
	t.Run("answers no binding", func(t *testing.T) { testUnansweredBindings(t, n) })
	t.Run("refuses delays", func(t *testing.T) { testDelayPermissions(t, n) })
	t.Run("refuses", func(t *testing.T) { testAccess(t, n) })
	t.Run("refuses what is too large", func(t *testing.T) { testTooLarge(t, n) })
	t.Run("has a queue that does not answer", func(t *testing.T) { testUnanswered(t, n) })
	t.Run("has dead letters that do not answer", func(t *testing.T) { testUnansweredDeadLetters(t, n) })
	t.Run("has a level that does not answer", func(t *testing.T) { testUnansweredLevel(t, n) })
	t.Run("blocks publishers", func(t *testing.T) { testBlocked(t, n) })
	t.Run("times an ack out", func(t *testing.T) { testAckTimeout(t, n) })
	t.Run("loses the queue of a campaign", func(t *testing.T) { testDeletedTarget(t, n) })
	t.Run("restarts", func(t *testing.T) { testRestart(t, n) })
	t.Run("is killed", func(t *testing.T) { testKilledNode(t, n) })
}

// Each refusal by the broker names the object and the missing permission, and shows no password.
func testAccess(t *testing.T, n *node) {
	n.run("add_user", "nobody", "hush")
	n.run("add_user", "reader", "hush")
	n.run("set_permissions", "reader", "^$", "^$", "^allowed") // configure, write, read
	s := open(t, n.broker(t))
	if err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: "allowed"}, {Name: "other"}}}); err != nil {
		t.Fatal(err)
	}
	refused := func(what string, err error, want ...string) {
		t.Helper()
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v, want %q", what, err, w)
			}
		}
		if err != nil && strings.Contains(err.Error(), "hush") || errors.Is(err, broker.ErrPermanent) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for user, hint := range map[string]string{"guest": "user and password", "stranger": "user and password", "nobody": "virtual host"} {
		_, err := n.as(t, user, "").Open(testContext(t))
		refused("open as "+user, err, hint)
	}
	_, err := n.as(t, "reader", "missing").Open(testContext(t))
	refused("open a missing virtual host", err, "missing", "virtual host")

	r := open(t, n.as(t, "reader", ""))
	ctx := testContext(t)
	err = r.Declare(ctx, broker.Topology{Queues: []broker.QueueSpec{{Name: "mine"}}})
	refused("declare a queue", err, `"mine"`, "configure permission on the queue", "rejected")
	err = r.Declare(ctx, broker.Topology{Exchanges: []broker.Exchange{{Name: "mine", Kind: broker.Direct}}})
	refused("declare an exchange", err, `"mine"`, "configure permission on the exchange", "rejected")
	err = r.Declare(ctx, broker.Topology{Bindings: []broker.Binding{{Queue: "allowed", Exchange: "amq.direct", Key: "k"}}})
	refused("bind", err, `"allowed"`, "write permission", "rejected")
	_, err = r.Consume(ctx, broker.ConsumeOptions{Queue: "other", Prefetch: 1})
	refused("consume", err, `"other"`, "read permission on the queue", "rejected")
	_, err = r.TryGet(ctx, "other", 1)
	refused("get", err, `"other"`, "read permission on the queue", "rejected")
	_, err = r.Purge(ctx, "other")
	refused("purge", err, `"other"`, "read permission on the queue", "rejected")
	refused("delete", r.Delete(ctx, "other"), `"other"`, "configure permission on the queue", "rejected")
	if _, err = r.Inspect(ctx, "other"); since43(t, n.url) {
		refused("inspect", err, `"other"`, "configure permission on the queue", "rejected")
	} else if err != nil {
		t.Errorf("inspect needs no permission: %v", err)
	}
	if r.Err() != nil {
		t.Fatalf("the refusal ended the session: %v", r.Err())
	}
	err = outcomes(t, r, broker.Message{RoutingKey: "allowed", ID: "1"})[0]
	refused("publish", err, "write permission", "rejected")
	if r.Err() != nil {
		t.Errorf("the refusal ended the session: %v", r.Err())
	}
}

// whenBlocked waits until a session knows that the broker blocks publishers, or no longer does.
func whenBlocked(t *testing.T, s broker.Session, want bool) (reason string) {
	t.Helper()
	ctx := testContext(t)
	for tick := time.Tick(5 * time.Millisecond); ; {
		reason, blocked := s.Blocked()
		if blocked == want {
			return reason
		}
		select {
		case <-tick:
		case <-s.Done():
			t.Fatal(s.Err())
		case <-ctx.Done():
			t.Fatalf("blocked is not %v", want)
		}
	}
}

// An alarm stops publishers, and nothing else.
func testBlocked(t *testing.T, n *node) {
	q := uniqueName()
	s := open(t, n.broker(t))
	top := broker.Topology{Queues: []broker.QueueSpec{{Name: q}, {Name: q + broker.DeadSuffix}}}
	if err := s.Declare(testContext(t), top); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = s.Delete(testContext(t), q), s.Delete(testContext(t), q+broker.DeadSuffix) })
	fill(t, s, q, 10)
	c := consume(t, s, q, 5)
	if reason, ok := s.Blocked(); ok {
		t.Fatalf("blocked: %s", reason)
	}
	n.run("set_vm_memory_high_watermark", "0.00001")
	alarm := true
	end := func() {
		if alarm {
			n.run("set_vm_memory_high_watermark", "0.4")
		}
		alarm = false
	}
	defer end()

	// The broker announces the block after it has received a publish. It keeps that message and confirms it when the
	// alarm is over.
	early := make(chan error, 1)
	s.Publish(testContext(t), []broker.Message{{RoutingKey: q, ID: "early"}}, func(_ int, err error) { early <- err })
	if reason := whenBlocked(t, s, true); !strings.Contains(reason, "memory") {
		t.Errorf("reason %q", reason)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	told := make(chan error, 2)
	s.Publish(ctx, []broker.Message{{RoutingKey: q, ID: "a"}, {RoutingKey: q, ID: "b"}}, func(_ int, err error) { told <- err })
	for range 2 {
		if err := <-told; !errors.Is(err, broker.ErrNotSent) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("publish: %v, want not sent", err)
		}
	}
	d := receive(t, c)
	if err := d.DeadLetter(ctx, d.Forward()); !errors.Is(err, broker.ErrNotSent) {
		t.Errorf("dead letter: %v, want not sent", err)
	}
	if err := d.Ack(); err != nil {
		t.Errorf("ack: %v", err)
	}
	for range 9 { // consuming and acking go on
		if err := receive(t, c).Ack(); err != nil {
			t.Errorf("ack: %v", err)
		}
	}
	testBlockedInMidWrite(t, n)

	// A session without work can be closed at once. Waiting publishers go on when the alarm is over.
	idle := open(t, n.broker(t))
	if err := idle.Close(testContext(t)); err != nil {
		t.Errorf("close: %v", err)
	}
	var waiting sync.WaitGroup
	waiting.Go(func() {
		s.Publish(testContext(t), []broker.Message{{RoutingKey: q, ID: "patient"}}, func(_ int, err error) { told <- err })
	})
	end()
	waiting.Wait()
	for _, c := range []chan error{early, told} {
		if err := <-c; err != nil {
			t.Errorf("after the alarm: %v", err)
		}
	}
	whenBlocked(t, s, false) // the notice may come after the confirms: RabbitMQ sends them from different processes
	got := []string{receive(t, c).ID, receive(t, c).ID}
	if got[0]+got[1] != "earlypatient" && got[0]+got[1] != "patientearly" {
		t.Errorf("in the queue: %q", got)
	}
}

// The broker stops reading while a publisher is in the middle of a write. The publisher returns when its context ends.
// The session lives on, although the peer reads nothing for longer than the time after which it counts as dead.
func testBlockedInMidWrite(t *testing.T, n *node) {
	n.run("set_vm_memory_high_watermark", "0.4")
	q := uniqueName()
	s := open(t, n.broker(t).WithHeartbeat(time.Second))
	if err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: q}}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Delete(testContext(t), q) })
	n.run("set_vm_memory_high_watermark", "0.00001")
	const count = 12
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	told := make(chan error, count)
	msgs, body := make([]broker.Message, count), make([]byte, 15<<20) // together more than sockets hold, and each less than RabbitMQ 4 accepts
	for i := range msgs {
		msgs[i] = broker.Message{RoutingKey: q, ID: fmt.Sprint(i), Body: body}
	}
	s.Publish(ctx, msgs, func(_ int, err error) { told <- err })
	if ctx.Err() == nil {
		t.Fatal("the broker read everything")
	}
	if s.Err() != nil {
		t.Fatalf("session: %v", s.Err())
	}
	n.run("set_vm_memory_high_watermark", "0.4")
	confirmed, notSent := 0, 0
	for range count {
		switch err := <-told; {
		case err == nil:
			confirmed++
		case errors.Is(err, broker.ErrNotSent):
			notSent++
		default:
			t.Errorf("publish: %v", err)
		}
	}
	if confirmed == 0 || notSent == 0 {
		t.Errorf("%d confirmed, %d not sent", confirmed, notSent)
	}
	n.run("set_vm_memory_high_watermark", "0.00001")
}

// RabbitMQ closes the channel of a delivery that is not settled in time. Only its consumer ends.
func testAckTimeout(t *testing.T, n *node) {
	n.run("eval", "application:set_env(rabbit,consumer_timeout,1000), application:set_env(rabbit,channel_tick_interval,300).")
	defer n.run("eval", "application:set_env(rabbit,consumer_timeout,1800000), application:set_env(rabbit,channel_tick_interval,60000).")
	q, kind, why := uniqueName(), "", "timed out"
	if since43(t, n.url) {
		kind, why = "quorum", "" // RabbitMQ only says that the subscription is over
	}
	s := open(t, n.broker(t))
	if err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: q, Type: kind}}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Delete(testContext(t), q) })
	fill(t, s, q, 1)
	c := consume(t, s, q, 1)
	d := receive(t, c)
	wait(t, "the consumer's end", c.Done())
	wait(t, "Lost", d.Lost())
	if err := c.Err(); !errors.Is(err, broker.ErrConsumerLost) || !strings.Contains(err.Error(), why) {
		t.Errorf("consumer: %v", err)
	}
	if err := d.Ack(); !errors.Is(err, broker.ErrDeliveryLost) {
		t.Errorf("late ack: %v", err)
	}
	if s.Err() != nil {
		t.Errorf("session: %v", s.Err())
	}
	if err := receive(t, consume(t, s, q, 1)).Ack(); err != nil {
		t.Errorf("ack by the next consumer: %v", err)
	}
}

// testRestart runs the whole suite, with restarts of the broker's application. They end connections and make RabbitMQ
// read durable data from disk.
func testRestart(t *testing.T, n *node) {
	brokertest.Run(t, brokertest.Harness{
		New: func(tb testing.TB) broker.Broker {
			proxy := brokertest.NewProxy(tb, n.url.Host)
			return &linked{through(tb, n.url, proxy.Addr()), proxy}
		},
		Kill:    func(_ testing.TB, b broker.Broker) { b.(*linked).proxy.Cut() },
		Restart: func(testing.TB, broker.Broker) { n.run("stop_app"); n.run("start_app") },
	})
}
