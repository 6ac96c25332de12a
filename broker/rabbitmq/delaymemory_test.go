package rabbitmq_test

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// vhost makes a virtual host for a test that deletes queues or exchanges that all programs share.
func vhost(t testing.TB) (b *rabbitmq.Broker, ch func() *amqp.Channel) {
	t.Helper()
	u, ctl, name := *amqpURL(t), os.Getenv("DISPATCHER_RABBITMQCTL"), uniqueName()
	if ctl == "" {
		t.Skip("needs DISPATCHER_RABBITMQCTL, beside DISPATCHER_AMQP_CON, to make a virtual host")
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(ctl, args...).CombinedOutput(); err != nil {
			t.Fatalf("rabbitmqctl %s: %v\n%s", args[0], err, out)
		}
	}
	run("add_vhost", name)
	t.Cleanup(func() { run("delete_vhost", name) })
	run("set_permissions", "-p", name, u.User.Username(), ".*", ".*", ".*")
	u.Path = "/" + url.PathEscape(name)
	conn, err := amqp.Dial(u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return newBroker(t, rabbitmq.Config{URLs: []string{u.String()}}), func() *amqp.Channel {
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		return ch
	}
}

// soon returns a due time whose message begins at level 6.
func soon() time.Time { return time.Now().Add(100 * time.Millisecond) }

// delayed publishes a delayed message through a new session and receives it.
func delayed(t testing.TB, b *rabbitmq.Broker, q string) {
	t.Helper()
	s, at := open(t, b), soon()
	published(t, s, broker.Message{RoutingKey: q, ID: "1", NotBefore: at})
	c := consume(t, s, q, 1)
	if err := due(t, c, at).Ack(); err != nil {
		t.Error(err)
	}
	if err := c.Close(testContext(t)); err != nil {
		t.Error(err)
	}
}

func TestLevelsAreDeclaredOnceForAllSessions(t *testing.T) {
	t.Parallel()
	b, ch := vhost(t)
	q := workQueue(t, open(t, b))
	delayed(t, b, q)
	const highest = "dispatcher.delay.v2.34"
	if _, err := ch().QueueDelete(highest, false, false, false); err != nil {
		t.Fatal(err)
	}
	there := func() bool {
		_, err := ch().QueueDeclarePassive(highest, true, false, false, false, nil)
		return err == nil
	}
	delayed(t, b, q)
	if there() {
		t.Error("a later session has declared the levels again")
	}
	published(t, open(t, b), broker.Message{RoutingKey: q, ID: "0", NotBefore: time.Now().Add(broker.MaxDelay)})
	if !there() {
		t.Error("the level that a message needs was not declared again")
	}
}

func TestLevelDeletedBetweenSessionsIsMadeAgain(t *testing.T) {
	t.Parallel()
	b, ch := vhost(t)
	q := workQueue(t, open(t, b))
	delayed(t, b, q)
	if _, err := ch().QueueDelete("dispatcher.delay.v2.6", false, false, false); err != nil {
		t.Fatal(err)
	}
	delayed(t, b, q)
	for _, level := range []string{"5", "6"} {
		if err := ch().ExchangeDelete("dispatcher.delay.v2."+level, false, false); err != nil {
			t.Fatal(err)
		}
	}
	delayed(t, b, q)
}

// Messages written behind a message to a deleted exchange are in no queue. They wait until the exchange exists again.
func TestDelaysBehindADeletedLevelAreConfirmed(t *testing.T) {
	t.Parallel()
	b, ch := vhost(t)
	s := open(t, b)
	q := workQueue(t, s)
	delayed(t, b, q)
	for _, level := range []string{"5", "6"} {
		if err := ch().ExchangeDelete("dispatcher.delay.v2."+level, false, false); err != nil {
			t.Fatal(err)
		}
	}
	at5 := time.Now().Add(40 * time.Millisecond)
	published(t, s,
		broker.Message{RoutingKey: q, ID: "6", NotBefore: at5.Add(60 * time.Millisecond)},
		broker.Message{RoutingKey: q, ID: "5", NotBefore: at5}, broker.Message{RoutingKey: q, ID: "5 too", NotBefore: at5})
}

// If several messages go to a deleted exchange, nobody knows which of them were refused. None is reported as rejected,
// and the next messages go through.
func TestManyDelaysToADeletedLevelAreUnconfirmedOnce(t *testing.T) {
	t.Parallel()
	b, ch := vhost(t)
	s := open(t, b)
	q := workQueue(t, s)
	delayed(t, b, q)
	if err := ch().ExchangeDelete("dispatcher.delay.v2.6", false, false); err != nil {
		t.Fatal(err)
	}
	batch := func() []broker.Message {
		msgs, at := make([]broker.Message, 20), soon()
		for i := range msgs {
			msgs[i] = broker.Message{RoutingKey: q, ID: fmt.Sprint(i), NotBefore: at}
		}
		return msgs
	}
	for i, err := range outcomes(t, s, batch()...) {
		if err != nil && !errors.Is(err, broker.ErrUnconfirmed) {
			t.Errorf("message %d: %v", i, err)
		}
	}
	published(t, s, batch()...)
	if s.Err() != nil {
		t.Errorf("the session ended: %v", s.Err())
	}
}

// Somebody has deleted everything that serves delays, or has made the virtual host again.
func TestDelaysDeletedBetweenSessionsAreMadeAgain(t *testing.T) {
	t.Parallel()
	b, ch := vhost(t)
	q := workQueue(t, open(t, b))
	delayed(t, b, q)
	for _, name := range []string{"deliver", "undeliverable", "exit", "5", "6"} {
		if err := ch().ExchangeDelete("dispatcher.delay.v2."+name, false, false); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, b)
	if err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: q}}}); err != nil {
		t.Fatal(err)
	}
	delayed(t, b, q)
	if err := ch().ExchangeDelete("dispatcher.delay.v2.deliver", false, false); err != nil {
		t.Fatal(err)
	}
	rabbitmq.AgeBindings(b)
	fill(t, s, q, 1)
	c := consume(t, s, q, 1)
	d := receive(t, c)
	at := soon()
	if err := d.Retry(testContext(t), d.Forward(), time.Until(at)); err != nil {
		t.Fatal(err)
	}
	if err := due(t, c, at).Ack(); err != nil {
		t.Error(err)
	}
}

// The ephemeral queue of the next session has the same name as that of the last one, but not its binding.
func TestDelayedRetryToAnEphemeralQueueOfALaterSession(t *testing.T) {
	t.Parallel()
	b, q := through(t, amqpURL(t), amqpURL(t).Host), uniqueName()
	for range 2 {
		s := open(t, b)
		ctx, err := testContext(t), broker.ErrLocked
		for errors.Is(err, broker.ErrLocked) { // RabbitMQ may delete the queue some time after it has confirmed the close
			err = s.Declare(ctx, broker.Topology{Queues: []broker.QueueSpec{{Name: q, Ephemeral: true}}})
		}
		if err != nil {
			t.Fatal(err)
		}
		fill(t, s, q, 1)
		c := consume(t, s, q, 1)
		d := receive(t, c)
		if err := d.Retry(testContext(t), d.Forward(), time.Until(soon())); err != nil {
			t.Fatal(err)
		}
		if err := receive(t, c).Ack(); err != nil {
			t.Error(err)
		}
		if err := s.Close(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
}
