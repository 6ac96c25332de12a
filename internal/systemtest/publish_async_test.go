package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// results collects the outcomes of PublishAsync by uuid. It fails the test if a task has two.
type results struct {
	t  *testing.T
	mu sync.Mutex
	of map[string]error
	in []string // the uuids, in the order of the calls
}

func newResults(t *testing.T) *results { return &results{t: t, of: make(map[string]error)} }

func (r *results) done(uuid string) func(error) {
	return func(err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if _, twice := r.of[uuid]; twice {
			r.t.Errorf("task %s has a second outcome: %v", uuid, err)
		}
		r.of[uuid] = err
		r.in = append(r.in, uuid)
	}
}

func (r *results) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.in)
}

func TestPublishAsyncReportsEachOutcomeInOrder(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server(func(c *dispatcher.ServerConfig) {
			c.InitQueues = []dispatcher.Queue{{Name: v.name, BindingKeys: []string{v.name}}}
		})
		const n = 3000 // more than a window
		r := newResults(v.t)
		var want []string
		for i := range n {
			id := fmt.Sprint(i)
			want = append(want, id)
			s.PublishAsync(v.t.Context(), named(id, v.name), r.done(id))
		}
		eventually(v.t, "all have their outcome", func() bool { return r.count() == n })
		for id, err := range r.of {
			confirmed(v.t, id, err)
		}
		if fmt.Sprint(r.in) != fmt.Sprint(want) {
			v.t.Error("the outcomes are not in the order of the calls")
		}
		if st := s.Stats(); st.Published != n {
			v.t.Errorf("stats %+v", st)
		}
	})
}

func TestPublishAsyncReportsWhatWasNotPublished(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server(func(c *dispatcher.ServerConfig) {
			c.InitQueues = []dispatcher.Queue{{Name: v.name, BindingKeys: []string{v.name}}}
		})
		over, cancel := context.WithCancel(context.Background())
		cancel()
		for name, c := range map[string]struct {
			ctx    context.Context
			task   *dispatcher.Task
			want   error
			before bool
		}{
			"nil":          {t.Context(), nil, dispatcher.ErrRejected, true},
			"no name":      {t.Context(), dispatcher.NewTask(""), dispatcher.ErrTaskName, true},
			"bad argument": {t.Context(), dispatcher.NewTask("n", make(chan int)), dispatcher.ErrRejected, true},
			"ctx is over":  {over, dispatcher.NewTask("n"), dispatcher.ErrNotSent, true},
			"unroutable":   {t.Context(), &dispatcher.Task{Name: "n", RoutingKey: "nowhere"}, dispatcher.ErrUnroutable, false},
		} {
			results := make(chan error, 2)
			s.PublishAsync(c.ctx, c.task, func(err error) { results <- err })
			if c.before && len(results) != 1 {
				v.t.Errorf("%s: %d outcomes before PublishAsync returned", name, len(results))
			}
			if err := wait(v.t, results, name); !errors.Is(err, c.want) {
				v.t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
		s.PublishAsync(v.t.Context(), named("nobody asks", v.name), nil)
		s.Close()
		if st := s.Stats(); st.Published != 1 || st.Rejected != 4 || st.NotSent != 1 {
			v.t.Errorf("stats %+v", st)
		}
		results := make(chan error, 1)
		s.PublishAsync(v.t.Context(), dispatcher.NewTask("n"), func(err error) { results <- err })
		outcome(v.t, "after Close", wait(v.t, results, "after Close"), dispatcher.ErrServerClosed)
	})
}

// Links are cut while tasks are in flight. Each task has one outcome, and a confirmed one is in the queue.
func TestPublishAsyncReportsEachTaskOnceOverLostLinks(t *testing.T) {
	t.Parallel()
	for name, outbox := range map[string]bool{"no outbox": false, "outbox": true} {
		t.Run(name, func(t *testing.T) {
			everywhere(t, func(v *venue) {
				s := v.server(func(c *dispatcher.ServerConfig) {
					c.InitQueues = []dispatcher.Queue{{Name: v.name, BindingKeys: []string{v.name}}}
					c.ReconnectionRetriesForever = true
					if outbox {
						plainOutbox(c)
					}
				})
				const callers, each = 4, 2000
				r := newResults(v.t)
				var all sync.WaitGroup
				for c := range callers {
					all.Go(func() {
						for i := range each {
							id := fmt.Sprint(c, ".", i)
							s.PublishAsync(v.t.Context(), named(id, v.name), r.done(id))
							if c == 0 && i%500 == 250 {
								v.kill()
							}
						}
					})
				}
				all.Wait()
				eventually(v.t, "all have their outcome", func() bool { return r.count() == callers*each })
				s.Close() // sends the outbox
				queued := make(map[string]bool)
				info, err := v.session().Inspect(v.t.Context(), v.name)
				if err != nil {
					v.t.Fatal(err)
				}
				for _, d := range v.take(v.name, info.Ready) {
					queued[d.ID] = true
				}
				confirmed := 0
				for id, err := range r.of {
					switch {
					case err == nil || errors.Is(err, dispatcher.ErrInOutbox):
						if confirmed++; !queued[id] {
							v.t.Errorf("task %s: %v, and it is not in the queue", id, err)
						}
					case errors.Is(err, dispatcher.ErrNotSent):
						if queued[id] {
							v.t.Errorf("task %s is in the queue: %v", id, err)
						}
					case !errors.Is(err, dispatcher.ErrUnconfirmed):
						v.t.Errorf("task %s: %v", id, err)
					}
				}
				if confirmed == 0 {
					v.t.Error("none was confirmed")
				}
				v.t.Logf("%d of %d confirmed", confirmed, callers*each)
			})
		})
	}
}

// The broker answers nothing. One goroutine fills the window and waits. Then its contexts end.
func TestPublishAsyncKeepsItsWindowFullAndNoMore(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ body, want int }{"tasks": {10, 2000}, "bytes": {900 << 10, 9}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withQueue)
				r.chaos.HoldConfirms(true)
				body := strings.Repeat("x", c.body)
				ctx, cancel := context.WithCancel(t.Context())
				called, unconfirmed, notSent := 0, 0, 0
				var mu sync.Mutex
				over := make(chan struct{})
				go func() {
					defer close(over)
					for range c.want + 5 {
						called++
						r.server.PublishAsync(ctx, dispatcher.NewTask("n", body), func(err error) {
							mu.Lock()
							defer mu.Unlock()
							if errors.Is(err, dispatcher.ErrUnconfirmed) && errors.Is(err, context.Canceled) {
								unconfirmed++
							} else if errors.Is(err, dispatcher.ErrNotSent) {
								notSent++
							}
						})
					}
				}()
				synctest.Wait()
				if sent := r.inspect("jobs").Ready; called != c.want+1 || sent != c.want {
					t.Errorf("%d calls and %d sent without an answer, want %d", called, sent, c.want)
				}
				cancel()
				<-over
				synctest.Wait()
				if unconfirmed != c.want || notSent != 5 {
					t.Errorf("%d unconfirmed and %d not sent, want %d and 5", unconfirmed, notSent, c.want)
				}
				r.chaos.HoldConfirms(false)
			})
		})
	}
}

func TestPublishAsyncTimesOutAfterPublishTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		publish := func(what string, want error) {
			results := make(chan error, 1)
			began := time.Now()
			r.server.PublishAsync(t.Context(), dispatcher.NewTask("n"), func(err error) { results <- err })
			outcome(t, what, <-results, want)
			if took := time.Since(began); took > 30*time.Second || took < 29*time.Second {
				t.Errorf("%s: took %v", what, took)
			}
		}
		r.chaos.HoldConfirms(true)
		publish("without an answer", dispatcher.ErrUnconfirmed)
		r.chaos.HoldConfirms(false)
		r.chaos.Block(true)
		publish("blocked", dispatcher.ErrNotSent)
		r.chaos.Block(false)
		down(r, true)
		publish("without a connection", dispatcher.ErrDisconnected)
		up(r)
	})
}

// Close waits for the confirmations under way and for their functions, however slow those are.
func TestCloseWaitsForPublishAsync(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server(func(c *dispatcher.ServerConfig) {
			c.InitQueues = []dispatcher.Queue{{Name: v.name, BindingKeys: []string{v.name}}}
		})
		var called atomic.Int64
		const n = 200
		for range n {
			s.PublishAsync(v.t.Context(), dispatcher.NewTask("n"), func(err error) {
				pause(v.t.Context(), time.Millisecond)
				if err == nil {
					called.Add(1)
				}
			})
		}
		s.Close()
		if got := called.Load(); got != n {
			v.t.Errorf("%d of %d outcomes when Close returned", got, n)
		}
	})
}

// A function that panics or ends its goroutine harms no other one, and one that blocks harms nobody else.
func TestPublishAsyncContainsItsFunction(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		r.chaos.HoldConfirms(true)
		block, last := make(chan struct{}), make(chan error, 1)
		for _, done := range []func(error){
			func(error) { panic("secret") },
			func(error) { runtime.Goexit() },
			func(error) { <-block },
			func(err error) { last <- err },
		} {
			r.server.PublishAsync(t.Context(), dispatcher.NewTask("n"), done)
		}
		r.server.PublishAsync(t.Context(), nil, func(error) { panic("secret") })
		r.chaos.HoldConfirms(false)
		synctest.Wait()
		confirmed(t, "publish beside a function that blocks", r.server.Publish(dispatcher.NewTask("n")))
		if len(last) != 0 {
			t.Error("an outcome overtook one before it")
		}
		close(block)
		confirmed(t, "the last", <-last)
		if n := strings.Count(r.log.String(), "function of PublishAsync panicked"); n != 2 || strings.Contains(r.log.String(), "secret") {
			t.Errorf("log:\n%s", r.log.String())
		}
	})
}

// With an outbox, tasks that cannot be sent go there, also those that a lost connection did not take.
func TestPublishAsyncUsesTheOutbox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, plainOutbox)
		down(r, true)
		results := make(chan error, 1)
		r.server.PublishAsync(t.Context(), dispatcher.NewTask("n"), func(err error) { results <- err })
		kept(t, "without a connection", <-results)
		up(r)
		drained(t, r)
	})
}

// A task that was not sent waits for the next connection behind others. Its own bound holds nevertheless.
func TestPublishAsyncBoundsEachTask(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		notSent := script(func(broker.Message) error { return fmt.Errorf("%w: %w", broker.ErrNotSent, broker.ErrSessionLost) })
		r := newRig(t, withQueue, notSent, func(c *dispatcher.ServerConfig) { c.PublishTimeout = time.Hour })
		began := time.Now()
		outcomes := make(chan time.Duration, 2)
		publish := func(ctx context.Context) {
			r.server.PublishAsync(ctx, dispatcher.NewTask("n"), func(err error) {
				outcome(t, "publish", err, dispatcher.ErrNotSent)
				outcomes <- time.Since(began)
			})
			synctest.Wait()
		}
		publish(context.Background())
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		publish(ctx)
		if first, second := <-outcomes, <-outcomes; first != time.Second || second < 59*time.Minute || second > time.Hour {
			t.Errorf("outcomes after %v and %v, want a second and an hour", first, second)
		}
	})
}

// An outbox that hangs holds up all tasks together and not one after the other.
func TestPublishAsyncBoundsAnOutboxThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		notSent := script(func(broker.Message) error { return fmt.Errorf("%w: %w", broker.ErrNotSent, broker.ErrSessionLost) })
		r := newRig(t, withQueue, notSent, func(c *dispatcher.ServerConfig) {
			c.PublishTimeout = 3 * time.Second
			c.Outbox = hangingOutbox{dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})}
		})
		const n = 20
		outcomes := make(chan time.Duration, n)
		for range n {
			began := time.Now() // a call may wait for the outbox itself
			r.server.PublishAsync(context.Background(), dispatcher.NewTask("n"), func(err error) {
				if err == nil {
					t.Error("confirmed")
				}
				outcomes <- time.Since(began)
			})
		}
		for range n {
			if d := <-outcomes; d > 8*time.Second {
				t.Errorf("an outcome after %v, want PublishTimeout and five seconds at most", d)
			}
		}
	})
}

// hangingOutbox takes nothing until the context ends.
type hangingOutbox struct{ dispatcher.Outbox }

func (hangingOutbox) Add(ctx context.Context, _ dispatcher.OutboxEntry) error {
	<-ctx.Done()
	return ctx.Err()
}

// A program that goes on publishing does not keep Close from returning.
func TestCloseDoesNotWaitForLaterPublishAsync(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		ctx, stop := context.WithCancel(t.Context())
		var publishers sync.WaitGroup
		for range 8 {
			publishers.Go(func() {
				for pause(ctx, time.Millisecond) {
					r.server.PublishAsync(ctx, dispatcher.NewTask("n"), func(err error) {
						if err != nil {
							pause(ctx, time.Second) // so one is always open
						}
					})
				}
			})
		}
		eventually(t, "they publish", func() bool { return r.server.Stats().Published > 100 })
		began := time.Now()
		r.server.Close()
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("Close took %v", took)
		}
		stop()
		publishers.Wait()
	})
}

// A hook that ends its goroutine does not keep the outcome from the caller.
func TestTheOutcomeOfPublishAsyncIsReportedAfterAHookThatEndsItsGoroutine(t *testing.T) {
	t.Parallel()
	v := memoryVenue(t)
	s := v.server(func(c *dispatcher.ServerConfig) {
		c.InitQueues = []dispatcher.Queue{{Name: v.name, BindingKeys: []string{v.name}}}
		c.Hooks.Published = func(dispatcher.PublishEvent) { runtime.Goexit() }
	})
	done := make(chan error, 1)
	go s.PublishAsync(t.Context(), dispatcher.NewTask("t"), func(err error) { done <- err })
	if err := wait(t, done, "the outcome"); err != nil {
		t.Error(err)
	}
}
