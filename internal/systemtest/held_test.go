package systemtest_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/seed-416683c9/dispatcher"
)

// These tests deliver tasks while a call of the same queue, name and uuid runs.

// Many tasks with one uuid do not keep a worker from taking others, even if the first of them runs for a long time.
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
						raise(&most, now.Add(1))
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
				wait(v.t, entered, "call of the first task")
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
				eventually(v.t, "all tasks of the uuid have run", func() bool { return done.Load() == int32(same) })
				eventually(v.t, "all tasks are settled", func() bool { return s.Stats().Succeeded == int64(same)+50 })
				if most.Load() != 1 {
					v.t.Errorf("%d tasks of one uuid ran at once", most.Load())
				}
				if w := s.Health(v.t.Context()).Workers[0]; w.Held != 0 {
					v.t.Errorf("health %+v", w)
				}
			})
		})
	}
}

// A message that is delivered again while its call runs is held even beyond the limit, because it takes that call's
// verdict. Other slots go on.
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
		eventually(v.t, "all three redeliveries are held", func() bool {
			h := s.Health(v.t.Context())
			return h.Workers[0].Held == 3 && h.Workers[0].Running == 3
		})
		for range 10 {
			v.publish(s, "other")
			wait(v.t, others, "other task")
		}
		close(gate)
		eventually(v.t, "the held deliveries have taken the verdicts", func() bool { return s.Stats().Succeeded == 13 })
		if n := calls.Load(); n != 3 {
			v.t.Errorf("%d calls of 3 tasks", n)
		}
		v.empty(v.name)
	})
}

// A worker that stops releases the tasks it holds. Their attempts and losses do not increase.
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
		eventually(v.t, "two tasks are held", func() bool { return s.Health(v.t.Context()).Workers[0].Held == 2 })
		ended := make(chan error, 1)
		go func() { ended <- w.Shutdown(context.Background()) }()
		eventually(v.t, "the held tasks are released", func() bool { return s.Stats().Released >= 2 })
		close(gate)
		if err := wait(v.t, ended, "end of Shutdown"); err != nil {
			v.t.Error(err)
		}
		if st := s.Stats(); st.Succeeded != 1 || st.Lost != 0 {
			v.t.Errorf("stats %+v", st)
		}
		for _, d := range v.take(v.name, 2) {
			if d.Losses != 0 || d.Headers["x-dispatcher-losses"] != nil {
				v.t.Errorf("released message: %+v", d)
			}
		}
	})
}
