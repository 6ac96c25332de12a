package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// These tests are about copies that the broker refuses.

var errFull = fmt.Errorf("full: %w", broker.ErrNacked)

// boundQueue sets a policy on the place's queue: it takes at most n ready messages and refuses more.
func (r *rabbit) boundQueue(n int) {
	r.t.Helper()
	ctl, vhost := controller(r.t), strings.TrimPrefix(r.url.Path, "/")
	if vhost == "" {
		vhost = "/"
	}
	control(r.t, ctl, "set_policy", "-p", vhost, "--apply-to", "queues", r.name, "^"+r.name+"$", fmt.Sprintf(`{"max-length":%d,"overflow":"reject-publish"}`, n))
	r.t.Cleanup(func() { control(r.t, ctl, "clear_policy", "-p", vhost, r.name) })
}

// fill publishes until the queue refuses. It returns how many tasks the queue took.
func (r *rabbit) fill(name string) int {
	r.t.Helper()
	for n := 0; ; n++ {
		err := r.server.Publish(dispatcher.NewTask(name))
		if errors.Is(err, dispatcher.ErrRejected) || errors.Is(err, dispatcher.ErrUnconfirmed) {
			return n
		}
		if err != nil {
			r.t.Fatal(err)
		}
		if n > 1000 {
			r.t.Fatal("the queue has no limit")
		}
	}
}

// A worker died while it held tasks, so the queue has more messages than its limit. No task can move to its back until
// others have run.
func TestRabbitMQ_AFullQueueDrainsAfterALostWorker(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	w := r.newWorker(tasks{"n": fn(func() {})}, limit(4))
	r.boundQueue(20)
	all := r.fill("n")
	conn, ch := r.dial()
	if err := ch.Qos(8, 0, false); err != nil {
		t.Fatal(err)
	}
	in, err := ch.Consume(r.name, "", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		wait(t, in, "delivery")
	}
	all += r.fill("n")
	conn.Close()
	r.queueIs(r.name, all)
	if all < 28 {
		t.Fatalf("only %d tasks: the queue is not over its limit", all)
	}
	start(t, w, r.server)
	eventually(t, "all tasks have run", func() bool { return r.server.Stats().Succeeded == int64(all) })
	if st := r.server.Stats(); st.Suspected == 0 || st.DeadLettered != 0 {
		t.Errorf("stats %+v", st)
	}
}

// An immediate retry needs room in the queue that its task has just left.
func TestRabbitMQ_RetriesAtOnceDoNotStopAFullQueue(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	gate := make(chan struct{})
	var entered atomic.Int32
	w := r.newWorker(tasks{"n": fn(func() error {
		n := entered.Add(1)
		<-gate
		if n <= 2 {
			return dispatcher.RetryAfter(0, errors.New("again"))
		}
		return nil
	})}, limit(2))
	r.boundQueue(5)
	all := r.fill("n")
	start(t, w, r.server)
	eventually(t, "both slots are busy", func() bool { return entered.Load() == 2 })
	all += r.fill("n")
	close(gate)
	eventually(t, "all tasks have run", func() bool { return r.server.Stats().Succeeded == int64(all) })
	// A retry is counted when its copy is confirmed, which may already have run.
	eventually(t, "both retries are counted", func() bool { return r.server.Stats().Retried == 2 })
}

// A task that was lost once is not a suspect yet. If no queue takes it, it runs where it is.
func TestATaskLostOnceRunsWhereItIsIfNothingTakesIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ran := make(chan dispatcher.TaskInfo, 9)
	w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "jobs", Limit: 2}, tasks{
		"n": fn(func(ctx context.Context) { info, _ := dispatcher.TaskFromContext(ctx); ran <- info }),
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		r.publishRaw("jobs", message("n", fmt.Sprint(i), nil))
	}
	s := r.session()
	c, err := s.Consume(t.Context(), broker.ConsumeOptions{Queue: "jobs", Prefetch: 6})
	if err != nil {
		t.Fatal(err)
	}
	for range 6 {
		wait(t, c.Deliveries(), "delivery")
	}
	_ = s.Close(t.Context())
	r.chaos.FailRetry(errFull)
	start(t, w, r.server)
	for range 6 {
		if info := wait(t, ran, "call"); !info.Redelivered || info.Attempt != 1 {
			t.Errorf("ran %+v", info)
		}
	}
	eventually(t, "all tasks are settled", func() bool { return r.server.Stats().Succeeded == 6 })
	if st := r.server.Stats(); st.Suspected != 0 || st.DeadLettered != 0 {
		t.Errorf("stats %+v", st)
	}
}

// The prefetch does not limit suspects. Each suspect that waits for its dead letter would take a slot from the queue,
// until none is left.
func TestSuspectsWhoseDeadLettersAreRefusedDoNotStopTheQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.chaos.FailDeadLetter(errFull)
		var ran atomic.Int32
		w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "jobs", BindingKeys: []string{"jobs"}, Limit: 2}, tasks{
			"fine":  fn(func() { ran.Add(1) }),
			"fails": fn(func() error { return errors.New("no") }),
		})
		if err != nil {
			t.Fatal(err)
		}
		r.publishRaw("jobs.suspects", broker.Message{ID: "malformed", Body: []byte("malformed")})
		r.publishRaw("jobs.suspects", message("fails", "failing", nil))
		r.publishRaw("jobs.suspects", message("fine", "third", nil))
		start(t, w, r.server)
		<-time.After(time.Hour)
		if w := r.server.Health(t.Context()).Workers[0]; w.Stuck != 2 {
			t.Errorf("health %+v", w)
		}
		for range 10 {
			r.publish("fine")
		}
		<-time.After(time.Second)
		if n := ran.Load(); n < 10 { // the third suspect may have run before the second was stuck
			t.Errorf("%d of 10 tasks ran beside the stuck ones", n)
		}
		r.chaos.FailDeadLetter(nil)
		<-time.After(time.Hour)
		if w := r.server.Health(t.Context()).Workers[0]; w.Stuck != 0 || w.Dead != 2 || ran.Load() != 11 {
			t.Errorf("health %+v; %d tasks ran", w, ran.Load())
		}
	})
}

// The pauses and tries of writing a verdict end with the time for settling, even if PublishTimeout is longer.
func TestAVerdictThatIsBlockedEndsWithTheWorker(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ drain, most time.Duration }{"without a bound": {0, 45 * time.Second}, "with one": {time.Second, 10 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(c *dispatcher.ServerConfig) { c.PublishTimeout = time.Hour })
				gate := make(chan struct{})
				w := r.worker("w", tasks{"n": fn(func() error { <-gate; return errors.New("no") })}, limit(1))
				r.publish("n")
				r.chaos.Block(true)
				close(gate)
				<-time.After(time.Second)
				ctx, cancel := context.WithCancel(t.Context())
				if c.drain > 0 {
					ctx, cancel = context.WithTimeout(t.Context(), c.drain)
				}
				defer cancel()
				began := time.Now()
				if err := w.Shutdown(ctx); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took > c.most {
					t.Errorf("took %v", took)
				}
				r.chaos.Block(false)
			})
		})
	}
}

// Only a verdict whose headers are too large is written with smaller headers.
func TestAVerdictThatIsRefusedKeepsItsLog(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{"nack": errFull, "rejected": fmt.Errorf("full: %w", broker.ErrRejected)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(c *dispatcher.ServerConfig) { c.Retry = fast(4) })
				r.chaos.FailDeadLetter(err)
				r.worker("w", tasks{"n": fn(func() error { return errors.New("no") })})
				r.publish("n")
				<-time.After(time.Minute)
				if w := r.server.Health(t.Context()).Workers[0]; w.Stuck != 1 {
					t.Errorf("health %+v", w)
				}
				r.chaos.FailDeadLetter(nil)
				<-time.After(time.Minute)
				letters, err := r.server.DeadLetters("jobs").List(t.Context(), dispatcher.DeadLetterFilter{}, dispatcher.Page{})
				if err != nil || len(letters) != 1 || len(letters[0].Log) != 4 {
					t.Errorf("letters %+v, %v; want one with 4 attempts", letters, err)
				}
			})
		})
	}
}
