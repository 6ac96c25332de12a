package systemtest_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// weakly is a broker that knows which of its consumers are still referenced.
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

// A slot that is busy for a long time must not keep later consumers in memory.
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
		if n, all := b.alive(); n > 2 || all != lost+1 { // the long call's and the current one
			t.Errorf("%d of %d consumers are still referenced", n, all)
		}
		close(gate)
		synctest.Wait()
	})
}

// Not parallel: it measures the heap.
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
			runtime.GC() // frees what finalizers held
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		reconnect(10)
		before := heap()
		reconnect(1000)
		if grown := heap() - before; grown > 2<<20 {
			t.Errorf("the heap grew by %d KiB in 1,000 reconnects", grown>>10)
		}
		if st := r.server.Stats(); st.Reconnects != 1010 {
			t.Errorf("stats %+v", st)
		}
		close(gate)
		synctest.Wait()
	})
}

func TestAConsumerThatIsSlowToEndIsNotReleasedTo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var releases atomic.Int64
		h := hooked{
			released:      func() { releases.Add(1) },
			stop:          func(ctx context.Context, _ func() error) error { <-ctx.Done(); return ctx.Err() },
			closeConsumer: func(_ context.Context, next func() error) error { <-time.After(2 * time.Second); return next() },
		}
		r := newRig(t, withHooks(&h))
		w := r.worker("w", tasks{"n": fn(func() { <-time.After(200 * time.Millisecond) })}, limit(2))
		for range 10 {
			r.publish("n")
		}
		synctest.Wait()
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := w.Shutdown(ended); err != nil {
			t.Error(err)
		}
		if n := releases.Load(); n > 2 {
			t.Errorf("%d deliveries were released while their consumer was still open", n)
		}
		synctest.Wait()
		if q := r.inspect("jobs"); q.Ready != 8 || q.Unsettled != 0 {
			t.Errorf("queue %+v, want the eight tasks that did not run", q)
		}
	})
}

func TestLostDeliveriesAreNotRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withHooks(&hooked{}), func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds = 10 })
		gate := make(chan struct{})
		var runs atomic.Int32
		r.worker("w", tasks{"busy": fn(func() { <-gate }), "n": fn(func() { runs.Add(1) })}, limit(1))
		r.publish("busy")
		r.publish("n")
		for range 10 {
			<-time.After(time.Minute)
			r.chaos.Kill()
		}
		<-time.After(time.Minute)
		close(gate)
		<-time.After(time.Minute)
		if n := runs.Load(); n != 1 {
			t.Errorf("ran %d times, want 1: lost deliveries were run", n)
		}
	})
}

// deaf is a broker whose consumers never stop: Stop waits until its context ends.
type deaf struct{ broker.Broker }

type deafSession struct{ broker.Session }

type deafConsumer struct{ broker.Consumer }

func (b deaf) Open(ctx context.Context) (broker.Session, error) {
	s, err := b.Broker.Open(ctx)
	if err != nil {
		return nil, err
	}
	return deafSession{s}, nil
}

func (s deafSession) Consume(ctx context.Context, o broker.ConsumeOptions) (broker.Consumer, error) {
	c, err := s.Session.Consume(ctx, o)
	if err != nil {
		return nil, err
	}
	return deafConsumer{c}, nil
}

func (c deafConsumer) Stop(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// If the broker does not answer when a consumer stops, a worker without running tasks still ends in time, and a
// worker's running tasks are not cut short.
func TestAConsumerThatDoesNotStopHoldsUpNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *dispatcher.ServerConfig) { c.Broker = deaf{c.Broker} })
		gate := make(chan struct{})
		w := r.worker("w", tasks{"long": fn(func() error { <-gate; return errors.New("no") }), "n": fn(func() {})}, limit(3))
		task := r.publish("long")
		again := dispatcher.NewTask("long")
		again.UUID = task.UUID
		if err := r.server.Publish(again); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if h := r.server.Health(t.Context()).Workers[0]; h.Held != 1 {
			t.Fatalf("health %+v", h)
		}
		began := time.Now()
		ended := make(chan error, 1)
		go func() { ended <- w.Shutdown(context.Background()) }()
		<-time.After(time.Second)
		r.publish("n") // it is still delivered
		<-time.After(20 * time.Second)
		close(gate)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 40*time.Second {
			t.Errorf("took %v", took)
		}
		if st := r.server.Stats(); st.DeadLettered != 1 {
			t.Errorf("stats %+v: the running task's verdict was lost", st)
		}
		if info := r.inspect("jobs"); info.Ready != 2 {
			t.Errorf("queue %+v, want the held task and the late one", info)
		}
	})
}
