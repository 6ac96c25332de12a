package dispatcher_test

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// weakly is a broker that knows which of the consumers it has handed out are still referred to.
type weakly struct {
	broker.Broker
	mu        sync.Mutex
	consumers []weak.Pointer[weakConsumer]
}

type weakSession struct {
	broker.Session
	b *weakly
}

type weakConsumer struct{ broker.Consumer }

func (b *weakly) Open(ctx context.Context) (broker.Session, error) {
	s, err := b.Broker.Open(ctx)
	if err != nil {
		return nil, err
	}
	return weakSession{s, b}, nil
}

func (s weakSession) Consume(ctx context.Context, o broker.ConsumeOptions) (broker.Consumer, error) {
	inner, err := s.Session.Consume(ctx, o)
	if err != nil {
		return nil, err
	}
	c := &weakConsumer{inner}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.consumers = append(s.b.consumers, weak.Make(c))
	return c, nil
}

func (b *weakly) alive() (n, all int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.consumers {
		if p.Value() != nil {
			n++
		}
	}
	return n, len(b.consumers)
}

// A slot that is busy for long must not keep later consumers.
func TestConsumersThatAreOverAreForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &weakly{}
		r := newRig(t, func(c *dispatcher.ServerConfig) { b.Broker, c.Broker = c.Broker, b })
		gate, entered := make(chan struct{}), make(chan struct{}, 1)
		r.worker("w", tasks{"long": fn(func() { entered <- struct{}{}; <-gate }), "short": fn(func() {})}, limit(3))
		r.publish("long")
		<-entered
		const lost = 20
		for range lost {
			r.chaos.Kill()
			<-time.After(time.Minute)
			r.publish("short")
		}
		synctest.Wait()
		if st := r.server.Stats(); st.Reconnects != lost || st.Succeeded != lost {
			t.Fatalf("stats %+v", st)
		}
		runtime.GC()
		if n, all := b.alive(); n > 2 || all != lost+1 { // that of the long call, and the present one
			t.Errorf("%d of %d consumers are kept", n, all)
		}
		close(gate)
		synctest.Wait()
	})
}

// Not parallel: it looks at the heap.
func TestReconnectsBesideATaskThatNeverEndsLeaveNoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *dispatcher.ServerConfig) { c.Logger = quiet })
		gate, entered := make(chan struct{}), make(chan struct{}, 1)
		r.worker("w", tasks{"long": fn(func() { entered <- struct{}{}; <-gate })}, limit(100))
		r.publish("long")
		<-entered
		reconnect := func(n int) {
			for range n {
				r.chaos.Kill()
				<-time.After(time.Minute)
			}
		}
		heap := func() int64 {
			synctest.Wait()
			runtime.GC()
			runtime.GC() // what finalizers held
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		reconnect(10)
		before := heap()
		reconnect(1000)
		if grown := heap() - before; grown > 2<<20 {
			t.Errorf("the heap has grown by %d KiB in 1,000 reconnects", grown>>10)
		}
		if st := r.server.Stats(); st.Reconnects != 1010 {
			t.Errorf("stats %+v", st)
		}
		close(gate)
		synctest.Wait()
	})
}
