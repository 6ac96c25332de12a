package rabbitmq_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// amqpURL returns the URL of the broker to test with, or skips the test.
func amqpURL(t testing.TB) *url.URL {
	t.Helper()
	raw := os.Getenv("DISPATCHER_AMQP_CON")
	if raw == "" {
		t.Skip("needs DISPATCHER_AMQP_CON, the URL of a RabbitMQ")
	}
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal("DISPATCHER_AMQP_CON does not parse")
	}
	return u
}

// patience bounds every wait of a test. Only a broken adapter makes a test wait that long.
const patience = time.Minute

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func newBroker(t testing.TB, cfg rabbitmq.Config) *rabbitmq.Broker {
	t.Helper()
	b, err := rabbitmq.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// through returns a broker for u that is reached through another host and port.
func through(t testing.TB, u *url.URL, host string) *rabbitmq.Broker {
	t.Helper()
	v := *u
	v.Host = host
	return newBroker(t, rabbitmq.Config{URLs: []string{v.String()}})
}

// since43 reports whether the broker is RabbitMQ 4.3 or later. In these versions, a user needs at least one right to a
// queue or an exchange to look at it. Only a quorum queue takes back a delivery that is not settled in time.
func since43(t testing.TB, u *url.URL) bool {
	t.Helper()
	conn, err := amqp.Dial(u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var major, minor int
	if _, err := fmt.Sscanf(fmt.Sprint(conn.Properties["version"]), "%d.%d", &major, &minor); err != nil {
		t.Fatalf("version %v: %v", conn.Properties["version"], err)
	}
	return major > 4 || major == 4 && minor >= 3
}

// open returns a new session that ends with the test.
func open(t testing.TB, b broker.Broker) broker.Session {
	t.Helper()
	s, err := b.Open(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(testContext(t)) })
	return s
}

// uniqueName returns a name that no other test has.
func uniqueName() string { return "rabbitmq.test." + rand.Text() }
