package systemtest_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// gofort/dispatcher hung in each of these states (D4).
func TestCloseReturnsWhateverTheState(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*rig, *dispatcher.Worker){
		"connected":    func(*rig, *dispatcher.Worker) {},
		"twice":        func(r *rig, _ *dispatcher.Worker) { r.server.Close() },
		"worker first": func(_ *rig, w *dispatcher.Worker) { w.Close(); w.Close() },
		"disconnected": func(r *rig, _ *dispatcher.Worker) { r.chaos.FailOpen(errors.New("down")); r.chaos.Kill() },
		"just lost":    func(r *rig, _ *dispatcher.Worker) { r.chaos.Kill() },
		"queue deleted": func(r *rig, _ *dispatcher.Worker) {
			if err := r.session().Delete(r.t.Context(), "jobs"); err != nil {
				r.t.Error(err)
			}
		},
	} {
		for _, start := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t)
					w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "jobs"}, tasks{"n": fn(func() {})})
					if err != nil {
						t.Fatal(err)
					}
					if start {
						if err := w.Start(r.server); err != nil {
							t.Fatal(err)
						}
					}
					prepare(r, w)
					began := time.Now()
					w.Close()
					r.server.Close()
					r.server.Close()
					w.Close()
					if took := time.Since(began); took > 10*time.Second {
						t.Errorf("took %v", took)
					}
					if err := w.Start(r.server); !errors.Is(err, dispatcher.ErrServerClosed) {
						t.Errorf("Start after Close: %v, want ErrServerClosed", err)
					}
					if _, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "x", Queue: "q"}, nil); !errors.Is(err, dispatcher.ErrServerClosed) {
						t.Errorf("NewWorker after Close: %v, want ErrServerClosed", err)
					}
				})
			})
		}
	}
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
						t.Errorf("%d live sessions after Close", n)
					}
					if err := <-result; err == nil || time.Since(began) > 40*time.Second {
						t.Errorf("PublishContext: %v after %v", err, time.Since(began))
					}
					if s := r.server.Health(t.Context()).State; s != dispatcher.StateClosed {
						t.Errorf("state %s, want closed", s)
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
			<-first // a second Close of a session waits for the first, as the broker package requires
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

func TestShutdownsSideBySideEachKeepTheirBound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate := make(chan struct{})
		w := r.worker("w", tasks{"deaf": fn(func() { <-gate })})
		r.publish("deaf")
		synctest.Wait()
		began := time.Now()
		done := make(chan time.Duration, 3)
		for _, d := range []time.Duration{time.Hour, 5 * time.Second, 0} {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), d)
				defer cancel()
				if err := w.Shutdown(ctx); err != nil && !errors.Is(err, dispatcher.ErrTasksRunning) {
					t.Error(err)
				}
				done <- time.Since(began)
			}()
		}
		for _, most := range []time.Duration{8 * time.Second, 13 * time.Second} {
			if took := <-done; took > most {
				t.Errorf("took %v, want at most %v", took, most)
			}
		}
		close(gate)
		<-done
	})
}

func TestShutdownTimeoutCanBeUnlimited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *dispatcher.ServerConfig) { c.ShutdownTimeout = -1 })
		r.worker("w", tasks{"long": fn(func() { <-time.After(48 * time.Hour) })})
		r.publish("long")
		synctest.Wait()
		r.server.Close()
		if s := r.server.Stats(); s.Succeeded != 1 {
			t.Errorf("stats %+v, want the task finished", s)
		}
	})
}

func TestATaskThatClosesItsServerDoesNotHangForEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		began := time.Now()
		ended := make(chan time.Duration, 1)
		r.worker("w", tasks{"close": fn(func() { r.server.Close(); ended <- time.Since(began) })})
		r.publish("close")
		if took := <-ended; took > 45*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// A task or hook that closes its own server waits for itself. Close still returns within its limit and leaves nothing
// behind.
func TestClosingFromInsideAHookIsBounded(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Started", "Finished", "Retried", "DeadLettered", "Published", "Disconnected", "Reconnected", "WorkerStarted", "WorkerStopped"} {
		for _, what := range []string{"server", "worker"} {
			t.Run(name+" "+what, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var server atomic.Pointer[dispatcher.Server]
					took := make(chan time.Duration, 1)
					hook := func() {
						s := server.Swap(nil)
						if s == nil {
							return
						}
						began := time.Now()
						if w, err := s.GetWorkerByName("w"); err != nil {
							t.Error(err)
						} else if what == "worker" {
							w.Close()
						} else {
							s.Close()
						}
						took <- time.Since(began)
					}
					r := newRig(t, func(c *dispatcher.ServerConfig) {
						c.Retry = fast(2)
						h := &c.Hooks
						switch name {
						case "Started":
							h.Started = func(dispatcher.StartEvent) { hook() }
						case "Finished":
							h.Finished = func(dispatcher.FinishEvent) { hook() }
						case "Retried":
							h.Retried = func(dispatcher.RetryEvent) { hook() }
						case "DeadLettered":
							h.DeadLettered = func(dispatcher.DeadLetterEvent) { hook() }
						case "Published":
							h.Published = func(dispatcher.PublishEvent) { hook() }
						case "Disconnected":
							h.Disconnected = func(dispatcher.ConnectionEvent) { hook() }
						case "Reconnected":
							h.Reconnected = func(dispatcher.ConnectionEvent) { hook() }
						case "WorkerStarted":
							h.WorkerStarted = func(dispatcher.WorkerEvent) { hook() }
						case "WorkerStopped":
							h.WorkerStopped = func(dispatcher.WorkerEvent) { hook() }
						}
					})
					w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "jobs", BindingKeys: []string{"jobs"}}, tasks{"n": fn(func() error { return errors.New("no") })})
					if err != nil {
						t.Fatal(err)
					}
					server.Store(r.server)
					start(t, w, r.server)
					_ = r.server.Publish(dispatcher.NewTask("n"))
					<-time.After(time.Minute)
					r.chaos.Kill()
					<-time.After(time.Minute)
					if what == "worker" || len(took) == 0 {
						r.server.Close()
					}
					if d := <-took; d > 50*time.Second {
						t.Errorf("took %v", d)
					}
					<-time.After(time.Minute)
					if n := r.chaos.Live(); n != 0 {
						t.Errorf("%d live sessions after Close", n)
					}
				})
			})
		}
	}
}

// If a queue does not answer and no task runs, Close ends nevertheless.
func TestCloseWithAQueueThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	r.serve(r.ownQueue, func(c *dispatcher.ServerConfig) { c.ShutdownTimeout = time.Hour })
	r.worker(tasks{"f": fn(func() {})})
	suspend(t, r.name)
	began := time.Now()
	closed := make(chan struct{})
	go func() { defer close(closed); r.server.Close() }()
	wait(t, closed, "end of Close")
	t.Logf("Close took %v", time.Since(began))
}
