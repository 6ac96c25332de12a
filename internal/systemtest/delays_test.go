package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// Delayed tasks are never early. Tests of the shortest and the longest delay and of odd cases follow.

func TestDelayedTasksAreNeverEarlyAndExpireInTime(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		type run struct {
			name string
			at   time.Time
			info dispatcher.TaskInfo
		}
		runs := make(chan run, 10)
		w := v.newWorker(s, "w", tasks{"n": fn(func(ctx context.Context, name string) {
			info, _ := dispatcher.TaskFromContext(ctx)
			runs <- run{name, time.Now(), info}
		})})
		now := time.Now()
		due := map[string]time.Time{}
		for name, task := range map[string]*dispatcher.Task{
			"delay":      {Delay: 400 * time.Millisecond},
			"not before": {NotBefore: now.Add(500 * time.Millisecond)},
			"past":       {NotBefore: now.Add(-time.Hour)},
			"lasts":      {Delay: 300 * time.Millisecond, ExpiresAt: now.Add(time.Hour)},
		} {
			task.Name, task.Args = "n", dispatcher.Args(name)
			due[name] = time.Now().Add(task.Delay)
			if task.NotBefore.After(now) {
				due[name] = task.NotBefore
			}
			v.publishTask(s, task)
		}
		gone := dispatcher.NewTask("n", "expired")
		gone.ExpiresAt = time.Now().Add(100 * time.Millisecond)
		v.publishTask(s, gone)
		<-time.After(time.Until(gone.ExpiresAt)) // it expires before a worker starts
		if err := w.Start(s); err != nil {
			v.t.Fatal(err)
		}
		for range 4 {
			r := wait(v.t, runs, "task")
			if early := due[r.name].Sub(r.at); early > 0 {
				v.t.Errorf("%q arrived %v early", r.name, early)
			}
			if r.info.RoutingKey != v.name || r.info.Attempt != 1 {
				v.t.Errorf("%q: %+v", r.name, r.info)
			}
			delete(due, r.name)
		}
		if d := v.dead("expired"); d.ID != gone.UUID {
			v.t.Errorf("dead letter %s, want the expired task %s", d.ID, gone.UUID)
		}
		if len(due) != 0 {
			v.t.Errorf("these tasks did not arrive: %v", due)
		}
	})
}

func TestPublishRefusesAbsurdTimes(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		v.worker(s, "w", tasks{"n": fn(func() {})})
		now := time.Now()
		for name, task := range map[string]*dispatcher.Task{
			"negative delay":       {Delay: -1},
			"both":                 {Delay: time.Second, NotBefore: now.Add(time.Hour)},
			"too long":             {Delay: 367 * 24 * time.Hour},
			"too far":              {NotBefore: now.AddDate(3, 0, 0)},
			"end of time":          {NotBefore: time.Unix(1<<40, 0)},
			"has expired":          {ExpiresAt: now.Add(-time.Second)},
			"expires before delay": {Delay: time.Hour, ExpiresAt: now.Add(time.Minute)},
			"expires before time":  {NotBefore: now.Add(time.Hour), ExpiresAt: now.Add(time.Minute)},
		} {
			task.Name = "n"
			err := s.Publish(task)
			outcome(v.t, name, err, dispatcher.ErrRejected)
		}
		if st := s.Stats(); st.Rejected != 8 || st.Published != 0 {
			v.t.Errorf("stats %+v", st)
		}
	})
}

func TestTheShortestAndTheLongestDelay(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		type run struct {
			n  int
			at time.Time
		}
		runs := make(chan run, 10)
		v.worker(s, "w", tasks{"n": fn(func(n int) { runs <- run{n, time.Now()} })})
		var due []time.Time
		for i, d := range []time.Duration{1, time.Millisecond, 15 * time.Millisecond, 16 * time.Millisecond, 16*time.Millisecond + 1} {
			task := dispatcher.NewTask("n", i)
			task.Delay = d
			due = append(due, time.Now().Add(d))
			v.publishTask(s, task)
		}
		for range due {
			r := wait(v.t, runs, "task")
			if early := due[r.n].Sub(r.at); early > 0 {
				v.t.Errorf("task %d arrived %v early", r.n, early)
			}
		}
		for what, task := range map[string]*dispatcher.Task{
			"a moment too long": {Delay: broker.MaxDelay + 1},
			"too far away":      {NotBefore: time.Now().Add(broker.MaxDelay + time.Hour)},
			"expires when due":  {NotBefore: time.Now().Add(time.Hour).Round(0), ExpiresAt: time.Now().Add(time.Hour - time.Second)},
		} {
			task.Name = "n"
			outcome(v.t, what, s.Publish(task), dispatcher.ErrRejected)
		}
	})
}

// Only on the embedded broker: on RabbitMQ the task would stay for a year.
func TestTheLongestDelayIsTaken(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.worker("w", tasks{"n": fn(func() { t.Error("ran") })})
	task := dispatcher.NewTask("n")
	task.Delay = 366 * 24 * time.Hour
	if err := r.server.Publish(task); err != nil {
		t.Error(err)
	}
}

// A task that expires the moment it is due never runs in time. It becomes a dead letter.
func TestATaskThatExpiresWhenItIsDueIsKept(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		var early atomic.Bool
		task := dispatcher.NewTask("n")
		task.NotBefore = time.Now().Add(2 * time.Second) // the queues of the delay levels may have to be declared first
		task.ExpiresAt = task.NotBefore.Add(1)
		v.worker(s, "w", tasks{"n": fn(func() { early.Store(time.Now().Before(task.NotBefore)) })})
		v.publishTask(s, task)
		if d := v.dead("expired"); d.ID != task.UUID || early.Load() {
			v.t.Errorf("dead letter %s, want %s; it ran early: %t", d.ID, task.UUID, early.Load())
		}
	})
}

func TestADelayedTaskIsNotSentToABrokerThatBlocks(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *dispatcher.ServerConfig) { c.PublishTimeout = 50 * time.Millisecond })
	ran := make(chan int, 2)
	r.worker("w", tasks{"n": fn(func(n int) { ran <- n })})
	r.chaos.Block(true)
	task := dispatcher.NewTask("n", 1)
	task.Delay = time.Millisecond
	outcome(t, "publish", r.server.Publish(task), dispatcher.ErrNotSent)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	outcome(t, "publish with a context", r.server.PublishContext(ctx, task), dispatcher.ErrNotSent)
	r.chaos.Block(false)
	task.Args = dispatcher.Args(2)
	if err := r.server.Publish(task); err != nil {
		t.Fatal(err)
	}
	if n := wait(t, ran, "task"); n != 2 {
		t.Errorf("task %d ran", n)
	}
}

// A sender may delay a task that no worker serves. When it is due, it becomes undeliverable, and stays so until a queue
// for it exists.
func TestADelayedTaskWithoutAnyWorkerIsUndeliverable(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		task := dispatcher.NewTask("n", 7)
		task.Delay = 20 * time.Millisecond
		// The first delay on a connection may take longer than the delay itself. Then the task is due at once, and
		// unroutable.
		eventually(v.t, "the task is confirmed", func() bool {
			err := s.Publish(task)
			if err != nil {
				outcome(v.t, "publish", err, dispatcher.ErrUnroutable)
			}
			return err == nil
		})
		dead := s.DeadLetters(dispatcher.Undeliverable)
		own := dispatcher.DeadLetterFilter{UUID: task.UUID} // other tests' letters are there too
		listed := func() bool {
			letters, err := dead.List(v.t.Context(), own, dispatcher.Page{})
			if err != nil {
				v.t.Fatal(err)
			}
			return len(letters) == 1 && letters[0].Name == "n" && letters[0].RoutingKey == v.name && letters[0].Exchange == v.name
		}
		eventually(v.t, "the task is undeliverable", listed)
		eventually(v.t, "a replay is refused", func() bool {
			n, err := dead.Replay(v.t.Context(), own)
			return n == 0 && errors.Is(err, dispatcher.ErrUnroutable)
		})
		eventually(v.t, "the task is still undeliverable", listed)
		ran := make(chan int, 1)
		v.worker(s, "w", tasks{"n": fn(func(n int) { ran <- n })})
		eventually(v.t, "a replay publishes it", func() bool {
			n, err := dead.Replay(v.t.Context(), own)
			if err != nil {
				v.t.Fatal(err)
			}
			return n == 1
		})
		wait(v.t, ran, "the replayed task")
	})
}

// A retry whose queue is gone becomes undeliverable too. It keeps the headers of its task.
func TestARetryWhoseQueueIsGoneIsUndeliverableAndReplayed(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		failed := make(chan struct{}, 1)
		pause := 3 * time.Second // long enough for the steps before the retry is due
		first := v.worker(s, "first", tasks{"n": fn(func(int) error {
			failed <- struct{}{}
			return dispatcher.RetryAfter(pause, errors.New("later"))
		})})
		task := dispatcher.NewTask("n", 7)
		task.Headers = map[string]any{"mine": "kept"}
		v.publishTask(s, task)
		dead := s.DeadLetters(dispatcher.Undeliverable)
		own := dispatcher.DeadLetterFilter{UUID: task.UUID}
		wait(v.t, failed, "the first attempt")
		eventually(v.t, "its retry is confirmed", func() bool { return s.Stats().Retried == 1 })
		first.Close()
		if err := v.session().Delete(v.t.Context(), v.name); err != nil {
			v.t.Fatal(err)
		}
		eventually(v.t, "the retry is undeliverable", func() bool {
			letters, err := dead.List(v.t.Context(), own, dispatcher.Page{})
			if err != nil {
				v.t.Fatal(err)
			}
			return len(letters) == 1 && letters[0].Queue == v.name && letters[0].Exchange == "" && letters[0].Attempts == 1
		})
		ran := make(chan dispatcher.TaskInfo, 1)
		v.worker(s, "second", tasks{"n": fn(func(ctx context.Context, n int) {
			if info, ok := dispatcher.TaskFromContext(ctx); ok && n == 7 {
				ran <- info
			}
		})})
		eventually(v.t, "a replay publishes it", func() bool {
			n, err := dead.Replay(v.t.Context(), own)
			if err != nil {
				v.t.Fatal(err)
			}
			return n == 1
		})
		if info := wait(v.t, ran, "the replayed task"); info.UUID != task.UUID || info.Attempt != 1 || info.Headers["mine"] != "kept" {
			v.t.Errorf("got %+v", info)
		}
	})
}

// The same key in two exchanges is two routes, for delayed and for retried tasks too.
func TestEqualKeysOfTwoExchangesDoNotMeet(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		other := *v
		other.name = v.name + ".other"
		v.sweep(other.name)
		const count, key = 20, "the.same.key"
		var sides [2]chan string
		for i, place := range []*venue{v, &other} {
			s := place.server(func(c *dispatcher.ServerConfig) { c.Exchange, c.Retry = place.name, fast(2) })
			ran := make(chan string, 2*count)
			sides[i] = ran
			place.worker(s, "w", tasks{"n": fn(func(ctx context.Context, from string) error {
				if info, _ := dispatcher.TaskFromContext(ctx); info.Attempt == 1 {
					return errors.New("once more")
				}
				ran <- from
				return nil
			})}, func(c *dispatcher.WorkerConfig) { c.BindingKeys = []string{key} })
			publishMany(v, s, count, func(int) *dispatcher.Task {
				task := dispatcher.NewTask("n", place.name)
				task.RoutingKey, task.Delay = key, 30*time.Millisecond
				return task
			})
		}
		for i, name := range []string{v.name, other.name} {
			for range count {
				if from := wait(v.t, sides[i], "task"); from != name {
					v.t.Errorf("a task of %q arrived at %q", from, name)
				}
			}
		}
	})
}

// Delays and retries work for any name of a queue and a routing key.
func TestDelaysWithOddNames(t *testing.T) {
	t.Parallel()
	for what, name := range map[string]string{"dots": ".a..*.#.", "unicode": "Aufträge 日本 \u00a0🐇", "long": strings.Repeat("q", 150)} {
		t.Run(what, func(t *testing.T) {
			everywhere(t, func(v *venue) {
				queue := v.name + name
				if what == "long" {
					queue += strings.Repeat("l", 240-len(queue))
				}
				key := queue + strings.Repeat("k", 255-len(queue))
				v.sweep(queue)
				s := v.server(func(c *dispatcher.ServerConfig) { c.Retry = fast(2) })
				ran := make(chan dispatcher.TaskInfo, 10)
				v.worker(s, "w", tasks{"n": fn(func(ctx context.Context) error {
					info, _ := dispatcher.TaskFromContext(ctx)
					ran <- info
					return errors.New("again")
				})}, func(c *dispatcher.WorkerConfig) { c.Queue, c.BindingKeys = queue, []string{key} })
				task := dispatcher.NewTask("n")
				task.RoutingKey, task.Delay = key, 20*time.Millisecond
				v.publishTask(s, task)
				for attempt := 1; attempt <= 2; attempt++ {
					info := wait(v.t, ran, fmt.Sprint("attempt ", attempt))
					if info.Attempt != attempt || info.UUID != task.UUID || info.RoutingKey != key || info.Queue != queue {
						v.t.Errorf("attempt %d: %+v", attempt, info)
					}
				}
				d := v.take(queue+".dead", 1)[0]
				if d.ID != task.UUID || d.Headers["x-dispatcher-routing-key"] != key {
					v.t.Errorf("dead letter %+v", d.Message)
				}
			})
		})
	}
}

// A function that asks for an immediate retry a thousand times gets it, and the message does not grow with each retry.
func TestAThousandRetriesAtOnce(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server(func(c *dispatcher.ServerConfig) { c.Logger = errorsOnly{v.log} })
		const attempts = 1000
		v.worker(s, "w", tasks{"n": fn(func(ctx context.Context) error {
			if info, _ := dispatcher.TaskFromContext(ctx); info.Attempt == attempts {
				return dispatcher.Permanent(errors.New("enough"))
			}
			return dispatcher.RetryAfter(0, errors.New("again"))
		})})
		v.publish(s, "n")
		d := v.dead("permanent")
		if log, _ := d.Headers["x-dispatcher-log"].(string); d.Headers["x-dispatcher-attempt"] != int64(attempts) || len(log) > 6<<10 {
			v.t.Errorf("after attempt %v the log has %d bytes", d.Headers["x-dispatcher-attempt"], len(log))
		}
		// The last retries may be counted after the attempts that follow them.
		eventually(v.t, "all attempts are counted", func() bool { st := s.Stats(); return st.Retried == attempts-1 && st.Received == attempts })
	})
}
