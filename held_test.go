package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// Tasks that are delivered while a call of the same queue, name and uuid runs.

// Many tasks of one uuid, the first of which runs for long, are no reason to take nothing else.
func TestTasksOfOneUUIDDoNotStopTheOthers(t *testing.T) {
	t.Parallel()
	for _, same := range []int{4, 40} {
		t.Run(fmt.Sprint(same), func(t *testing.T) {
			t.Parallel()
			everywhere(t, func(v *venue) {
				s := v.server()
				var now, most, done atomic.Int32
				entered, gate, others := make(chan struct{}, same), make(chan struct{}), make(chan struct{}, 100)
				v.worker(s, "w", tasks{
					"same": fn(func() {
						if n := now.Add(1); n > most.Load() {
							most.Store(n)
						}
						entered <- struct{}{}
						<-gate
						now.Add(-1)
						done.Add(1)
					}),
					"other": fn(func() { others <- struct{}{} }),
				}, limit(4))
				for range same {
					task := dispatcher.NewTask("same")
					task.UUID = "order 7"
					v.publishTask(s, task)
				}
				wait(v.t, entered, "first of them")
				for range 50 {
					v.publish(s, "other")
				}
				for range 50 {
					wait(v.t, others, "other task")
				}
				eventually(v.t, "one runs and one is held", func() bool {
					w := s.Health(v.t.Context()).Workers[0]
					return w.Running == 1 && w.Held == 1 && w.Stuck == 0
				})
				close(gate)
				eventually(v.t, "all of them have run", func() bool { return done.Load() == int32(same) })
				eventually(v.t, "all are settled", func() bool { return s.Stats().Succeeded == int64(same)+50 })
				if most.Load() != 1 {
					v.t.Errorf("%d of one uuid at once", most.Load())
				}
				if w := s.Health(v.t.Context()).Workers[0]; w.Held != 0 {
					v.t.Errorf("health %+v", w)
				}
			})
		})
	}
}

// A message that is delivered again while its call runs is held beyond the bound, since it takes that call's verdict. Other slots go on.
func TestRedeliveriesOfRunningTasksHoldNoSlot(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		var calls atomic.Int32
		entered, gate, others := make(chan struct{}, 9), make(chan struct{}), make(chan struct{}, 100)
		v.worker(s, "w", tasks{
			"long":  fn(func(int) { calls.Add(1); entered <- struct{}{}; <-gate }),
			"other": fn(func() { others <- struct{}{} }),
		}, limit(4))
		for i := range 3 {
			v.publish(s, "long", i)
		}
		for range 3 {
			wait(v.t, entered, "call")
		}
		v.kill()
		eventually(v.t, "all three are held", func() bool {
			h := s.Health(v.t.Context())
			return h.Workers[0].Held == 3 && h.Workers[0].Running == 3
		})
		for range 10 {
			v.publish(s, "other")
			wait(v.t, others, "other task")
		}
		close(gate)
		eventually(v.t, "the verdicts are taken", func() bool { return s.Stats().Succeeded == 13 })
		if n := calls.Load(); n != 3 {
			v.t.Errorf("%d calls of 3 tasks", n)
		}
		v.empty(v.name)
	})
}

// A worker that stops gives back what it holds, uncharged.
func TestHeldTasksAreGivenBackWhenTheWorkerStops(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		entered, gate := make(chan struct{}, 9), make(chan struct{})
		w := v.worker(s, "w", tasks{"n": fn(func() { entered <- struct{}{}; <-gate })}, limit(5))
		for range 3 {
			task := dispatcher.NewTask("n")
			task.UUID = "order 7"
			v.publishTask(s, task)
		}
		wait(v.t, entered, "call")
		eventually(v.t, "two are held", func() bool { return s.Health(v.t.Context()).Workers[0].Held == 2 })
		ended := make(chan error, 1)
		go func() { ended <- w.Shutdown(context.Background()) }()
		eventually(v.t, "they are given back", func() bool { return s.Stats().Released >= 2 })
		close(gate)
		if err := wait(v.t, ended, "end of Shutdown"); err != nil {
			v.t.Error(err)
		}
		if st := s.Stats(); st.Succeeded != 1 || st.Lost != 0 {
			v.t.Errorf("stats %+v", st)
		}
		for _, d := range v.take(v.name, 2) {
			if d.Losses != 0 || d.Headers["x-dispatcher-losses"] != nil {
				v.t.Errorf("given back: %+v", d)
			}
		}
	})
}

// A suspect does not wait for another call: it would keep all other suspects of the server waiting.
func TestASuspectWhoseTaskRunsDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate, ran := make(chan struct{}), make(chan string, 9)
		r.worker("w", tasks{
			"long":  fn(func() { <-gate }),
			"other": fn(func() { ran <- "other" }),
		}, limit(2))
		task := r.publish("long")
		synctest.Wait()
		r.publishRaw("jobs.suspects", message("long", task.UUID, map[string]any{"x-dispatcher-losses": int64(3)}))
		r.publishRaw("jobs.suspects", message("other", "u", nil))
		<-time.After(time.Minute)
		if len(ran) != 1 {
			t.Error("the other suspect has not run")
		}
		close(gate)
		<-time.After(time.Minute)
		if st := r.server.Stats(); st.Succeeded != 3 || st.DeadLettered != 0 {
			t.Errorf("stats %+v", st)
		}
	})
}

// deaf is a broker whose consumers do not stop while the gate is shut.
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

// A broker that does not answer the end of a consumer holds up no worker without running tasks, and does not cut those that run.
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
		r.publish("n") // is still delivered
		<-time.After(20 * time.Second)
		close(gate)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 40*time.Second {
			t.Errorf("took %v", took)
		}
		if st := r.server.Stats(); st.DeadLettered != 1 {
			t.Errorf("stats %+v: the verdict of the running task is lost", st)
		}
		if info := r.inspect("jobs"); info.Ready != 2 {
			t.Errorf("queue %+v, want the held one and the late one", info)
		}
	})
}

// A queue of suspects that does not answer holds neither a slot nor the turn, and what it hands out late is not charged.
func TestALateSuspectIsGivenBackUncharged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &slowGet{entered: make(chan struct{}, 99), gate: make(chan struct{})}
		var ran atomic.Int32
		r := newRig(t, func(c *dispatcher.ServerConfig) { b.Broker, c.Broker = c.Broker, b })
		w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "jobs", BindingKeys: []string{"jobs"}, Limit: 1}, tasks{"n": fn(func() { ran.Add(1) })})
		if err != nil {
			t.Fatal(err)
		}
		r.publishRaw("jobs.suspects", message("n", "u", map[string]any{"x-dispatcher-losses": int64(4)}))
		start(t, w, r.server)
		<-time.After(6 * time.Second)
		r.publish("n")
		<-time.After(time.Second)
		if ran.Load() != 1 {
			t.Error("the only slot waits for the queue of suspects")
		}
		<-time.After(time.Hour)
		if n := len(b.entered); n != 1 {
			t.Errorf("%d fetches at once", n)
		}
		close(b.gate)
		<-time.After(time.Minute)
		if st := r.server.Stats(); b.broken.Load() || st.Released != 1 || st.DeadLettered != 0 || ran.Load() != 2 {
			t.Errorf("broken off %v, %d calls, stats %+v", b.broken.Load(), ran.Load(), st)
		}
	})
}

// A worker ends within seconds all the same.
func TestAFetchThatIsNotAnsweredDoesNotHoldUpShutdown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &slowGet{entered: make(chan struct{}, 99), gate: make(chan struct{})}
		r := newRig(t, func(c *dispatcher.ServerConfig) { b.Broker, c.Broker = c.Broker, b })
		w := r.worker("w", tasks{})
		<-time.After(time.Minute)
		began := time.Now()
		if err := w.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("took %v", took)
		}
	})
}
