package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// storm opens a new session whenever the last one is lost. It records the outcomes of everything published through
// these sessions.
type storm struct {
	*testing.T
	b    broker.Broker
	left atomic.Int64 // outcomes to come

	opening sync.Mutex // guards the next two
	current broker.Session
	all     []broker.Session

	mu   sync.Mutex
	told map[string][]error
}

// session returns the session in use. It opens a new one if the last one is lost.
func (s *storm) session() broker.Session {
	s.opening.Lock()
	defer s.opening.Unlock()
	for ctx := testContext(s); s.current == nil || s.current.Err() != nil; {
		next, err := s.b.Open(ctx)
		if ctx.Err() != nil {
			panic(err) // no session for a minute
		}
		if err == nil {
			s.current = next
			s.all = append(s.all, next)
		}
	}
	return s.current
}

// publish publishes msgs and does not wait for the outcomes.
func (s *storm) publish(ctx context.Context, session broker.Session, msgs []broker.Message) {
	ids := make([]string, len(msgs))
	s.mu.Lock()
	for i := range msgs {
		ids[i] = msgs[i].ID
		s.told[ids[i]] = nil
	}
	s.mu.Unlock()
	s.left.Add(int64(len(msgs)))
	session.Publish(ctx, msgs, func(i int, err error) {
		s.mu.Lock()
		s.told[ids[i]] = append(s.told[ids[i]], err)
		s.mu.Unlock()
		s.left.Add(-1)
	})
}

// Everything that can happen to a message happens at once. Exchanges are missing or come and go, bodies are large,
// callers give up, and links are cut in the middle of a frame. Each message has one outcome, which is true, and is
// written once.
func TestEveryOutcomeIsTrueInAStorm(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	direct := open(t, through(t, amqpURL(t), amqpURL(t).Host))
	proxy := brokertest.NewProxy(t, amqpURL(t).Host)
	s := &storm{T: t, b: through(t, amqpURL(t), proxy.Addr()), told: make(map[string][]error)}
	q, x := workQueue(t, direct), exchange(t, direct, broker.Direct)
	bind(t, direct, q, x, "key")
	flapping := exchange(t, direct, broker.Direct)
	bind(t, direct, q, flapping, "key")

	stop := make(chan struct{})
	var around sync.WaitGroup
	around.Go(func() { // the exchange comes and goes
		ch := foreign(t)
		for every := time.Tick(20 * time.Millisecond); ; {
			select {
			case <-stop:
				return
			case <-every:
			}
			if err := ch.ExchangeDelete(flapping, false, false); err != nil {
				t.Error(err)
			}
			if err := ch.ExchangeDeclare(flapping, "direct", true, false, false, false, nil); err != nil {
				t.Error(err)
			}
			if err := ch.QueueBind(q, "key", flapping, false, nil); err != nil {
				t.Error(err)
			}
		}
	})
	around.Go(func() { // the link is cut
		random := rand.New(rand.NewPCG(seed, 0))
		for every := time.Tick(250 * time.Millisecond); ; {
			select {
			case <-stop:
				return
			case <-every:
				proxy.CutAfter(random.IntN(10_000))
			}
		}
	})
	const publishers = 8
	var all sync.WaitGroup
	ctx := testContext(t)
	end := time.Now().Add(time.Second)
	for i := range publishers {
		random := rand.New(rand.NewPCG(seed, uint64(i+1)))
		all.Go(func() {
			for n := 0; time.Now().Before(end); n++ {
				msgs := make([]broker.Message, 1+random.IntN(20))
				for j := range msgs {
					m := broker.Message{Exchange: x, RoutingKey: "key", ID: fmt.Sprint(i, ".", n, ".", j)}
					switch random.IntN(10) {
					case 0:
						m.Exchange = q + ".missing"
					case 1, 2:
						m.Exchange = flapping
					case 3, 4, 5:
						m.Exchange, m.RoutingKey = "", q
					case 6:
						m.RoutingKey = "unroutable"
					case 7:
						m.Body = make([]byte, 10_000+random.IntN(50_000)) // some go alone
					}
					msgs[j] = m
				}
				within, cancel := ctx, context.CancelFunc(func() {})
				if random.IntN(3) == 0 {
					within, cancel = context.WithTimeout(ctx, time.Duration(random.IntN(5000))*time.Microsecond)
				}
				s.publish(within, s.session(), msgs)
				cancel()
			}
		})
	}
	all.Wait()
	close(stop)
	around.Wait()
	proxy.CutAfter(-1)
	for _, session := range s.all {
		if err := session.Close(testContext(t)); err != nil {
			t.Errorf("close: %v", err)
		}
		wait(t, "the end of a session", session.Done())
		if held := rabbitmq.Held(session); held != "" {
			t.Errorf("a session that has ended still holds %s", held)
		}
	}
	if left := s.left.Load(); left != 0 {
		t.Errorf("%d outcomes are missing or came twice", left)
	}
	s.compare(q)
}

// compare compares the outcomes with what is in the queue.
func (s *storm) compare(q string) {
	stored := make(map[string]int)
	for ch := foreign(s); ; {
		d, ok, err := ch.Get(q, true)
		if err != nil {
			s.Fatal(err)
		}
		if !ok {
			break
		}
		stored[d.MessageId]++
	}
	counts := make(map[error]int)
	for id, errs := range s.told {
		if len(errs) != 1 {
			s.Errorf("message %s has %d outcomes: %v", id, len(errs), errs)
			continue
		}
		is, kinds := errs[0], 0
		for _, kind := range []error{broker.ErrNotSent, broker.ErrRejected, broker.ErrUnconfirmed} {
			if errors.Is(errs[0], kind) {
				is = kind
				kinds++
			}
		}
		counts[is]++
		copies := stored[id]
		switch {
		case is == nil && copies != 1, is != nil && kinds != 1, copies > 1, copies > 0 && (is == broker.ErrNotSent || is == broker.ErrRejected):
			s.Errorf("message %s: %d copies, outcome %v", id, copies, errs[0])
		}
		delete(stored, id)
	}
	for id := range stored {
		s.Errorf("message %q was never published", id)
	}
	s.Logf("%d sessions, outcomes %v", len(s.all), counts)
	for _, kind := range []error{nil, broker.ErrNotSent, broker.ErrRejected, broker.ErrUnconfirmed} {
		if counts[kind] == 0 {
			s.Errorf("no outcome is %v", kind)
		}
	}
}
