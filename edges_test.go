package dispatcher_test

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// What was found by attacking: brokers that are slow to end, outcomes that mix, errors that misbehave.

// hooked is a broker whose consumers and sessions end as a test says. It also has what some adapters have: a goroutine
// between the broker's channel and the worker's, so that lost deliveries can still be received.
type hooked struct {
	broker.Broker
	stop, closeConsumer, closeSession func(ctx context.Context, next func() error) error
	released                          func()
	arrives                           func(*broker.Delivery)
	lateDone                          time.Duration // by which Session.Done follows the end of its consumers
}

type hookedSession struct {
	broker.Session
	h    *hooked
	done chan struct{}
}

type hookedConsumer struct {
	broker.Consumer
	h          *hooked
	deliveries chan broker.Delivery
}

type hookedSettler struct {
	broker.Settler
	h *hooked
}

// withHooks puts h between the server and its broker.
func withHooks(h *hooked) func(*dispatcher.ServerConfig) {
	return func(c *dispatcher.ServerConfig) { h.Broker = c.Broker; c.Broker = h }
}

func (h *hooked) Open(ctx context.Context) (broker.Session, error) {
	s, err := h.Broker.Open(ctx)
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if <-s.Done(); h.lateDone > 0 {
			<-time.After(h.lateDone)
		}
	}()
	return hookedSession{s, h, done}, nil
}

func (s hookedSession) Done() <-chan struct{} { return s.done }

func (s hookedSession) Consume(ctx context.Context, o broker.ConsumeOptions) (broker.Consumer, error) {
	c, err := s.Session.Consume(ctx, o)
	if err != nil {
		return nil, err
	}
	out := &hookedConsumer{c, s.h, make(chan broker.Delivery, o.Prefetch)}
	go func() {
		defer close(out.deliveries)
		for d := range c.Deliveries() {
			d.Settler = hookedSettler{d.Settler, s.h}
			if s.h.arrives != nil {
				s.h.arrives(&d)
			}
			out.deliveries <- d
		}
	}()
	return out, nil
}

func (s hookedSession) Close(ctx context.Context) error {
	return via(s.h.closeSession, ctx, s.Session.Close)
}
func (c *hookedConsumer) Deliveries() <-chan broker.Delivery { return c.deliveries }
func (c *hookedConsumer) Stop(ctx context.Context) error     { return via(c.h.stop, ctx, c.Consumer.Stop) }
func (c *hookedConsumer) Close(ctx context.Context) error {
	return via(c.h.closeConsumer, ctx, c.Consumer.Close)
}

func (s hookedSettler) Release() error {
	if s.h.released != nil {
		s.h.released()
	}
	return s.Settler.Release()
}

func via(hook func(context.Context, func() error) error, ctx context.Context, next func(context.Context) error) error {
	if hook == nil {
		return next(ctx)
	}
	return hook(ctx, func() error { return next(ctx) })
}

func TestCloseClosesTheSessionWhateverIsUnderWay(t *testing.T) {
	t.Parallel()
	for name, timeout := range map[string]time.Duration{"bounded": time.Second, "unbounded": -1} {
		for cause, set := range map[string]func(*rig){
			"blocked":      func(r *rig) { r.chaos.Block(true) },
			"unconfirmed":  func(r *rig) { r.chaos.HoldConfirms(true) },
			"disconnected": func(r *rig) { r.chaos.FailOpen(errors.New("down")); r.chaos.Kill() },
		} {
			t.Run(name+" "+cause, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) { c.ShutdownTimeout = timeout })
					set(r)
					synctest.Wait()
					result := make(chan error, 1)
					go func() { result <- r.server.PublishContext(context.Background(), dispatcher.NewTask("n")) }()
					synctest.Wait()
					began := time.Now()
					r.server.Close()
					if took := time.Since(began); took > 40*time.Second {
						t.Errorf("Close took %v", took)
					}
					synctest.Wait()
					if n := r.chaos.Live(); n != 0 {
						t.Errorf("%d sessions live after Close", n)
					}
					if err := <-result; err == nil || time.Since(began) > 40*time.Second {
						t.Errorf("publish: %v after %v", err, time.Since(began))
					}
					if s := r.server.Health(t.Context()).State; s != dispatcher.StateClosed {
						t.Errorf("state %s", s)
					}
				})
			})
		}
	}
}

func TestTheSecondCloseWaitsForTheFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var h hooked
		first := make(chan struct{})
		h.closeSession = func(_ context.Context, next func() error) error {
			<-first // as the seam has it: a second Close of a session waits for the first
			return next()
		}
		r := newRig(t, withHooks(&h))
		time.AfterFunc(3*time.Second, func() { close(first) })
		go r.server.Close()
		synctest.Wait()
		r.server.Close()
		if n := r.chaos.Live(); n != 0 {
			t.Error("the second Close returned before the session was closed")
		}
	})
}

func TestAPublishHasOneOutcomeWhateverTheCauseOfItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		for name, c := range map[string]struct {
			set func(bool)
			is  error
		}{
			"unconfirmed":  {r.chaos.HoldConfirms, dispatcher.ErrUnconfirmed},
			"disconnected": {func(on bool) { down(r, on) }, dispatcher.ErrNotSent},
		} {
			c.set(true)
			for _, cause := range []error{dispatcher.ErrDisconnected, dispatcher.ErrUnroutable, dispatcher.ErrUnconfirmed} {
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(time.Second, func() { cancel(cause) })
				err := r.server.PublishContext(ctx, dispatcher.NewTask("n"))
				var outcomes []error
				for _, o := range []error{dispatcher.ErrNotSent, dispatcher.ErrRejected, dispatcher.ErrUnconfirmed} {
					if errors.Is(err, o) {
						outcomes = append(outcomes, o)
					}
				}
				if len(outcomes) != 1 || outcomes[0] != c.is || !errors.Is(err, context.Canceled) {
					t.Errorf("%s, cause %v: %v Is %v", name, cause, err, outcomes)
				}
			}
			c.set(false)
		}
	})
}

// down takes the connection away, or lets it come back.
func down(r *rig, on bool) {
	if !on {
		r.chaos.FailOpen(nil)
		eventuallyOK(r.t, r)
		return
	}
	r.chaos.FailOpen(errors.New("down"))
	r.chaos.Kill()
	synctest.Wait()
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
			t.Errorf("%d releases to a consumer that was still there", n)
		}
		synctest.Wait()
		if q := r.inspect("jobs"); q.Ready != 8 || q.Unsettled != 0 {
			t.Errorf("queue %+v, want the eight that did not run", q)
		}
	})
}

func TestShutdownIsBoundedByABrokerThatIgnoresItsContexts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		h := hooked{stop: func(_ context.Context, next func() error) error { <-gate; return next() }}
		r := newRig(t, withHooks(&h))
		w := r.worker("w", tasks{"n": fn(func() {})})
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		began := time.Now()
		if err := w.Shutdown(ended); err == nil || time.Since(began) > 8*time.Second {
			t.Errorf("got %v after %v, want an error in time", err, time.Since(began))
		}
		close(gate)
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
			t.Errorf("run %d times: deliveries known to be lost were run", n)
		}
	})
}

// An adapter that has goroutines of its own ends its consumers first and says Done last. The worker took that for a lost
// consumer on a live session, and paused ever longer while it was connected.
func TestAFlappingConnectionIsPacedByTheSupervisorAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withHooks(&hooked{lateDone: 10 * time.Millisecond}))
		r.worker("w", tasks{"n": fn(func() {})})
		began := time.Now()
		for range 20 {
			r.chaos.Kill()
			synctest.Wait()
			eventuallyOK(t, r)
		}
		if took := time.Since(began); took > 30*time.Second { // a pause of 1 s ± 20 % each
			t.Errorf("20 lost connections took %v", took)
		}
		r.server.Close()
		<-time.After(time.Second) // fake time ends with the test, and with it the wait of the last Done
	})
}

func TestErrorsThatMisbehaveHarmNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var fine atomic.Int32
		r.worker("w", tasks{
			"exits":  fn(func() error { return exitingError{} }),
			"panics": fn(func() error { return nestedError{} }),
			"hangs":  {Timeout: time.Second, Function: func() error { return hangingError{time.After(time.Hour)} }},
			"typed":  fn(func() *dispatcher.ArgumentError { return nil }),
			"other":  fn(func() *dispatcher.ArgumentError { return &dispatcher.ArgumentError{Want: "x"} }),
			"fine":   fn(func() { fine.Add(1) }),
		}, limit(1))
		for _, name := range []string{"exits", "panics", "hangs", "other"} {
			r.publish(name)
			<-time.After(10 * time.Second)
			if d := r.dead(1)[0]; d.Type != name {
				t.Errorf("%s: dead letter of %s", name, d.Type)
			}
			r.publish("fine")
		}
		r.publish("typed")
		<-time.After(2 * time.Hour)
		if fine.Load() != 4 {
			t.Errorf("%d of 4 ran: a slot is lost", fine.Load())
		}
		if s := r.server.Stats(); s.DeadLettered != 4 || s.Succeeded != 5 {
			t.Errorf("stats %+v", s)
		}
	})
}

type (
	exitingError struct{}
	nestedError  struct{}
	hangingError struct{ until <-chan time.Time }
)

func (exitingError) Error() string   { runtime.Goexit(); return "" }
func (nestedError) Error() string    { panic(nestedError{}) }
func (e hangingError) Error() string { <-e.until; return "late" }

func TestAnErrorThatCannotBeNilIsRefusedAtRegistration(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "q"}, tasks{"n": fn(func() exitingError { return exitingError{} })})
	if err == nil {
		t.Error("accepted: every call would be a failure")
	}
}

func TestAbandonedCallsAreCountedApartAtShutdown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate := make(chan struct{})
		w := r.worker("w", tasks{"deaf": {Timeout: time.Second, Function: func() { <-gate }}})
		r.publish("deaf")
		<-time.After(5 * time.Second)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		err := w.Shutdown(ended)
		if !errors.Is(err, dispatcher.ErrTasksRunning) || err.Error() != `worker "w": tasks are still running: 0, and 1 abandoned ones` {
			t.Errorf("got %v", err)
		}
		close(gate)
	})
}

func TestATaskThatTheDrainDeadlineEndedIsGivenBackEvenIfItsTimeoutPassesMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.worker("w", tasks{"slow": {Timeout: 10 * time.Second, Function: func(ctx context.Context) error {
			<-ctx.Done()
			<-time.After(800 * time.Millisecond)
			return context.Cause(ctx)
		}}})
		r.publish("slow")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 9500*time.Millisecond)
		defer cancel()
		if err := r.server.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if s := r.server.Stats(); s.Released != 1 || s.DeadLettered != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestStartAfterGivingUpSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *dispatcher.ServerConfig) { c.ReconnectionRetriesForever, c.ReconnectionRetries = false, -1 })
		w := r.worker("w", tasks{"n": fn(func() {})})
		w.Close()
		r.chaos.FailOpen(errors.New("gone"))
		r.chaos.Kill()
		<-r.givenUp
		if err := w.Start(r.server); !errors.Is(err, dispatcher.ErrServerClosed) {
			t.Errorf("got %v: who waits to start again would wait for ever", err)
		}
	})
}

func TestAConnectionThatWasJustLostIsCalledDisconnected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		for range 20 {
			r.chaos.FailOpen(errors.New("down"))
			r.chaos.Kill() // noticed by the supervisor in a moment, before or after the calls
			if err := r.server.Publish(dispatcher.NewTask("n")); !errors.Is(err, dispatcher.ErrDisconnected) || !errors.Is(err, dispatcher.ErrNotSent) {
				t.Fatalf("publish: %v", err)
			}
			if _, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "q"}, nil); !errors.Is(err, dispatcher.ErrDisconnected) {
				t.Fatalf("new worker: %v", err)
			}
			r.chaos.FailOpen(nil)
			<-time.After(time.Minute)
		}
	})
}
