package brokertest

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// patience is the time limit of one test. It is generous, since only a broken broker makes a test wait that long. The
// tests of this package shorten it for brokers that are broken on purpose.
var patience = time.Minute

// directExchange is shared by all tests, each with keys of its own, since a broker.Session cannot delete exchanges.
const directExchange = "brokertest.direct"

// kit is the broker, session and helpers of one test. Its methods fail the test and belong to its goroutine.
type kit struct {
	*testing.T
	h      Harness
	b      broker.Broker
	s      broker.Session  // the main session of the test
	ctx    context.Context // ends after patience
	prefix string          // of all names of this test

	queues []string // names that may have been declared
}

func newKit(t *testing.T, h Harness) *kit {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	k := &kit{T: t, h: h, b: h.New(t), ctx: ctx, prefix: "brokertest." + rand.Text()[:10] + "."}
	t.Cleanup(k.deleteQueues)
	k.s = k.open()
	return k
}

// deleteQueues deletes the queues of the test. It uses a session and a context of its own, since those of the test may
// have ended.
func (k *kit) deleteQueues() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := k.b.Open(ctx)
	if err != nil {
		k.Errorf("open a session to clean up: %v", err)
		return
	}
	for _, q := range k.queues {
		if err := s.Delete(ctx, q); err != nil {
			k.Errorf("clean up queue %q: %v", q, err)
		}
	}
	k.ok("close the session that cleaned up", s.Close(ctx))
}

// open opens another session of the test's broker. It is closed when the test ends.
func (k *kit) open() broker.Session {
	k.Helper()
	s, err := k.b.Open(k.ctx)
	k.must("open a session", err)
	k.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = s.Close(ctx) // tests of Close call it themselves
	})
	return s
}

// close closes a session cleanly: its acks have reached the broker afterwards.
func (k *kit) close(s broker.Session) {
	k.Helper()
	k.must("close the session", s.Close(k.ctx))
}

// kill cuts the links of all sessions of the test and waits until the given ones have ended.
func (k *kit) kill(sessions ...broker.Session) {
	k.Helper()
	k.h.Kill(k.T, k.b)
	for _, s := range sessions {
		k.wait("the killed session to end", s.Done())
	}
}

// must ends the test if err is not nil. ok fails it and goes on.
func (k *kit) must(what string, err error) {
	k.Helper()
	if err != nil {
		k.Fatalf("%s: %v", what, err)
	}
}

func (k *kit) ok(what string, err error) {
	k.Helper()
	if err != nil {
		k.Errorf("%s: %v", what, err)
	}
}

// is checks that err Is want.
func (k *kit) is(what string, err, want error) {
	k.Helper()
	if !errors.Is(err, want) {
		k.Errorf("%s: got %v, want an error that Is %q", what, err, want)
	}
}

// wait blocks until c is closed.
func (k *kit) wait(what string, c <-chan struct{}) {
	k.Helper()
	select {
	case <-c:
	case <-k.ctx.Done():
		k.Fatalf("timed out waiting for %s", what)
	}
}

// eventually polls until f returns true, for effects that no channel signals.
func (k *kit) eventually(what string, f func() bool) {
	k.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-k.ctx.Done():
			k.Fatalf("timed out waiting for %s", what)
		}
	}
}

// returns runs f and fails the test if it hangs.
func (k *kit) returns(what string, f func()) {
	k.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	k.wait(what+" to return", done)
}

// parallel runs n copies of f at once and waits for all.
func (k *kit) parallel(what string, n int, f func(i int)) {
	k.Helper()
	k.returns(what, func() {
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { f(i) })
		}
		wg.Wait()
	})
}

// closed reports whether c is closed by now.
func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// ended returns a context that has ended.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
