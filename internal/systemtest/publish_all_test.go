package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// numbered yields n tasks with the uuids 0 to n-1, and counts them in taken.
func numbered(n int, taken *int) iter.Seq[*dispatcher.Task] {
	return func(yield func(*dispatcher.Task) bool) {
		for i := range n {
			*taken++
			if !yield(named(fmt.Sprint(i), "jobs")) {
				return
			}
		}
	}
}

// uuids returns the uuids of every step'th of n tasks.
func uuids(from, n, step int) string {
	var ids []string
	for i := from; i < n; i += step {
		ids = append(ids, fmt.Sprint(i))
	}
	return fmt.Sprint(ids)
}

func TestPublishAllYieldsEachTaskWithItsOutcomeInOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t, withQueue)
	later := dispatcher.NewTask("later")
	later.Delay = time.Hour
	all := []*dispatcher.Task{
		dispatcher.NewTask("a"), nil, dispatcher.NewTask(""), {Name: "b", RoutingKey: "nowhere"}, later, dispatcher.NewTask("c", make(chan int)), dispatcher.NewTask("d"),
	}
	want := []error{nil, dispatcher.ErrRejected, dispatcher.ErrTaskName, dispatcher.ErrUnroutable, nil, dispatcher.ErrRejected, nil}
	results := r.server.PublishAll(t.Context(), slices.Values(all))
	if s := r.server.Stats(); s.Published != 0 {
		t.Errorf("PublishAll published before its results were read: %+v", s)
	}
	i := 0
	for task, err := range results {
		if task != all[i] || !errors.Is(err, want[i]) {
			t.Errorf("result %d: task %v, got %v, want %v", i, task, err, want[i])
		}
		i++
	}
	if i != len(all) {
		t.Errorf("%d results of %d", i, len(all))
	}
	ds, err := r.session().TryGet(t.Context(), "jobs", 10)
	if err != nil || len(ds) != 2 || ds[0].Type != "a" || ds[1].Type != "d" {
		t.Errorf("queue holds %d messages, %v; want a and d", len(ds), err)
	}
	if s := r.server.Stats(); s.Published != 3 || s.Rejected != 4 {
		t.Errorf("stats %+v", s)
	}
	for range r.server.PublishAll(t.Context(), slices.Values[[]*dispatcher.Task](nil)) {
		t.Error("an empty sequence yielded a result")
	}
}

// PublishTimeout limits each task, not the whole. Here the whole takes ten times as long as one publish may.
func TestPublishAllBoundsEachTaskAndNotTheWhole(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		began := time.Now()
		slow := func(yield func(*dispatcher.Task) bool) {
			for i := range 15 {
				<-time.After(20 * time.Second)
				if !yield(named(fmt.Sprint(i), "jobs")) {
					return
				}
			}
		}
		for task, err := range r.server.PublishAll(t.Context(), slow) {
			confirmed(t, task.UUID, err)
		}
		if took := time.Since(began); took != 5*time.Minute {
			t.Errorf("took %v", took)
		}
	})
}

func TestPublishAllTimesOutAfterPublishTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		taken, results, began := 0, 0, time.Now()
		r.chaos.HoldConfirms(true)
		for task, err := range r.server.PublishAll(t.Context(), numbered(500, &taken)) {
			outcome(t, task.UUID, err, dispatcher.ErrUnconfirmed)
			results++
		}
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("without answers: took %v", took)
		}
		r.chaos.HoldConfirms(false)
		r.chaos.Block(true)
		began = time.Now()
		for task, err := range r.server.PublishAll(t.Context(), numbered(3, &taken)) {
			outcome(t, task.UUID, err, dispatcher.ErrNotSent)
			results++
		}
		if took := time.Since(began); took != 90*time.Second {
			t.Errorf("blocked: took %v, want 30 s for each of three tasks", took)
		}
		if results != 503 {
			t.Errorf("%d results, want 503", results)
		}
		r.chaos.Block(false)
	})
}

func TestPublishAllKeepsItsWindowFullAndNoMore(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ body, want int }{"tasks": {10, 2000}, "bytes": {900 << 10, 10}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withQueue)
				r.chaos.HoldConfirms(true)
				taken, failed := 0, 0
				text := strings.Repeat("x", c.body)
				done := make(chan struct{})
				go func() {
					defer close(done)
					many := func(yield func(*dispatcher.Task) bool) {
						for taken < 2*c.want {
							taken++
							if !yield(dispatcher.NewTask("n", text)) {
								return
							}
						}
					}
					for _, err := range r.server.PublishAll(t.Context(), many) {
						if err != nil {
							failed++
						}
					}
				}()
				synctest.Wait()
				if sent := r.inspect("jobs").Ready; taken != c.want || sent != c.want {
					t.Errorf("%d tasks taken and %d sent without an answer, want %d", taken, sent, c.want)
				}
				r.chaos.HoldConfirms(false)
				<-done
				if taken != 2*c.want || failed != 0 {
					t.Errorf("%d tasks taken, %d failed", taken, failed)
				}
			})
		})
	}
}

// accounts checks that every task that PublishAll took has an outcome in Stats and in the hook.
func accounts(t *testing.T, r *rig, hooked *int, taken *int) {
	t.Helper()
	s := r.server.Stats()
	if sum := s.Published + s.NotSent + s.Rejected + s.Unconfirmed + s.Outboxed; *taken == 0 || int(sum) != *taken || *hooked != *taken {
		t.Errorf("%d tasks taken, %d outcomes in Stats, %d in the hook", *taken, sum, *hooked)
	}
}

func counting(hooked *int) func(*dispatcher.ServerConfig) {
	return func(c *dispatcher.ServerConfig) { c.Hooks.Published = func(dispatcher.PublishEvent) { *hooked++ } }
}

func TestPublishAllAccountsForEveryTaskWhenItsLoopIsLeft(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	loop := func(r *rig, taken *int, panics int, body func(i int) bool) {
		defer func() {
			if e := recover(); e != nil && e != boom {
				panic(e)
			}
		}()
		forever := func(yield func(*dispatcher.Task) bool) {
			for yield(named(fmt.Sprint(*taken), "jobs")) {
				if *taken++; *taken == panics {
					panic(boom)
				}
			}
			*taken++
		}
		i := 0
		for range r.server.PublishAll(r.t.Context(), forever) {
			if !body(i) {
				break
			}
			i++
		}
	}
	for name, f := range map[string]func(r *rig, taken *int){
		"break":                  func(r *rig, taken *int) { loop(r, taken, 0, func(i int) bool { return i < 5 }) },
		"the sequence panics":    func(r *rig, taken *int) { loop(r, taken, 700, func(i int) bool { return true }) },
		"the loop's body panics": func(r *rig, taken *int) { loop(r, taken, 0, func(i int) bool { *taken++; panic(boom) }) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				taken, hooked := 0, 0
				r := newRig(t, withQueue, counting(&hooked))
				r.chaos.HoldConfirms(true)
				time.AfterFunc(10*time.Second, func() { r.chaos.HoldConfirms(false); r.chaos.HoldConfirms(true) })
				began := time.Now()
				f(r, &taken)
				accounts(t, r, &hooked, &taken)
				if took := time.Since(began); took > 40*time.Second {
					t.Errorf("took %v", took)
				}
				if s := r.server.Stats(); s.Published < 500 {
					t.Errorf("stats %+v, want the tasks published whose answers came after ten seconds", s)
				}
				r.chaos.HoldConfirms(false)
			})
		})
	}
}

func TestPublishAllEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		taken, hooked := 0, 0
		r := newRig(t, withQueue, counting(&hooked))
		ctx, cancel := context.WithCancel(t.Context())
		forever := func(yield func(*dispatcher.Task) bool) {
			for ; ; taken++ {
				if taken == 100 {
					r.chaos.HoldConfirms(true)
				}
				if taken == 105 {
					cancel()
				}
				if !yield(named(fmt.Sprint(taken), "jobs")) {
					taken++
					return
				}
			}
		}
		began, i := time.Now(), 0
		for task, err := range r.server.PublishAll(ctx, forever) {
			switch {
			case i < 100:
				confirmed(t, task.UUID, err)
			case i < 105:
				outcome(t, task.UUID, err, dispatcher.ErrUnconfirmed)
			default:
				outcome(t, task.UUID, err, dispatcher.ErrNotSent)
			}
			if i >= 100 && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			i++
		}
		if i != 106 || taken != 106 || time.Since(began) != 0 {
			t.Errorf("%d results of %d tasks after %v; want the five tasks in flight and one that was not sent, at once", i, taken, time.Since(began))
		}
		accounts(t, r, &hooked, &taken)
		r.chaos.HoldConfirms(false)
	})
}

func TestPublishAllAfterCloseIsNotSent(t *testing.T) {
	t.Parallel()
	r := newRig(t, withQueue)
	r.server.Close()
	taken := 0
	for task, err := range r.server.PublishAll(t.Context(), numbered(3, &taken)) {
		outcome(t, task.UUID, err, dispatcher.ErrServerClosed)
	}
	if taken != 3 {
		t.Errorf("%d tasks taken, want 3", taken)
	}
}
