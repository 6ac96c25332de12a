package rabbitmq_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// mute is a host that accepts connections, sends words and then nothing more.
type mute struct {
	net.Listener
	words string
	conns sync.WaitGroup // open connections
}

func newMute(t *testing.T, words string) *mute {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mute{Listener: l, words: words}
	m.conns.Add(1)
	go m.accept()
	t.Cleanup(func() { _ = l.Close(); m.conns.Wait() })
	return m
}

func (m *mute) accept() {
	defer m.conns.Done()
	for {
		c, err := m.Accept()
		if err != nil {
			return
		}
		m.conns.Go(func() {
			defer c.Close()
			_, _ = io.WriteString(c, m.words)
			_, _ = io.Copy(io.Discard, c) // until the client hangs up
		})
	}
}

// nodes returns a broker with a node at u and one at each other host.
func nodes(t *testing.T, u *url.URL, hosts ...string) *rabbitmq.Broker {
	t.Helper()
	urls := []string{u.String()}
	for _, host := range hosts {
		v := *u
		v.Host = host
		urls = append(urls, v.String())
	}
	return newBroker(t, rabbitmq.Config{URLs: urls})
}

// A frozen host does not delay Open by the ten seconds that a dial may take.
func TestOpenDoesNotWaitForSilentNodes(t *testing.T) {
	t.Parallel()
	u := amqpURL(t)
	a, b, c := newMute(t, ""), newMute(t, ""), newMute(t, "")
	for range 4 { // the order is random, and the node that answers comes first once in four times
		ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
		s, err := nodes(t, u, a.Addr().String(), b.Addr().String(), c.Addr().String()).Open(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(testContext(t)); err != nil {
			t.Error(err)
		}
	}
	for _, m := range []*mute{a, b, c} { // Open has closed the connections that it gave up
		_ = m.Close()
		within(t, "the connections to end", m.conns.Wait)
	}
}

// A node that freezes in the middle of a handshake has sent something. Open still goes on to the next node.
func TestOpenDoesNotWaitForANodeThatFreezesInTheHandshake(t *testing.T) {
	t.Parallel()
	u, m := amqpURL(t), newMute(t, "\x01")
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
		s, err := nodes(t, u, m.Addr().String()).Open(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close(testContext(t))
	}
}

// Open tries every address, and its error describes each failure.
func TestOpenReportsEveryNode(t *testing.T) {
	t.Parallel()
	u, _ := url.Parse("amqp://u:hush@127.0.0.1:1/")
	m := newMute(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := nodes(t, u, m.Addr().String()).Open(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"127.0.0.1:1/", m.Addr().String()} {
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("got %q, want it to name %s and no password", err, want)
		}
	}
}

// A node that failed is tried last for half a minute.
func TestOpenTriesFailedNodesLast(t *testing.T) {
	t.Parallel()
	u, _ := url.Parse("amqp://127.0.0.1:1/")
	b := nodes(t, u, "127.0.0.1:2", "127.0.0.1:3")
	synctest.Test(t, func(t *testing.T) {
		for range 50 {
			b.Shun(1)
			if order := b.Order(); order[2] != 1 {
				t.Fatalf("the order is %v, want 1 last", order)
			}
		}
		<-time.After(31 * time.Second)
		first := 0
		for range 100 {
			if b.Order()[0] == 1 {
				first++
			}
		}
		if first == 0 {
			t.Error("a node that failed half a minute ago never comes first")
		}
	})
}

// A node that refuses the connection counts as failed. The next one is tried at once.
func TestOpenRemembersWhoFailed(t *testing.T) {
	t.Parallel()
	u, _ := url.Parse("amqp://127.0.0.1:1/")
	b := nodes(t, u)
	if _, err := b.Open(testContext(t)); err == nil {
		t.Fatal("no error")
	}
	if b.Shunned() != 1 {
		t.Errorf("%d nodes are remembered, want 1", b.Shunned())
	}
}

// within fails the test if f does not return.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	wait(t, what, done)
}
