package systemtest_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/seed-416683c9/dispatcher"
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
