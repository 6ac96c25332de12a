package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// lagging is a broker whose sessions write a message some time after Publish has returned. A message that is unwritten
// when its session dies is not sent.
type lagging struct{ broker.Broker }

type laggingSession struct {
	broker.Session
	done chan struct{}
	more chan struct{} // signals that a message was added

	mu      sync.Mutex
	over    bool
	waiting []lagged
}

type lagged struct {
	m    broker.Message
	done func(int, error)
}

func (b lagging) Open(ctx context.Context) (broker.Session, error) {
	inner, err := b.Broker.Open(ctx)
	if err != nil {
		return nil, err
	}
	s := &laggingSession{Session: inner, done: make(chan struct{}), more: make(chan struct{}, 1)}
	go s.run()
	return s, nil
}

func (s *laggingSession) Done() <-chan struct{} { return s.done }

func (s *laggingSession) Publish(_ context.Context, msgs []broker.Message, done func(int, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range msgs {
		if s.over {
			done(0, fmt.Errorf("%w: %w", broker.ErrNotSent, broker.ErrSessionLost))
			continue
		}
		s.waiting = append(s.waiting, lagged{m, done})
	}
	select {
	case s.more <- struct{}{}:
	default:
	}
}

func (s *laggingSession) run() {
	defer close(s.done)
	for {
		s.mu.Lock()
		waiting := s.waiting
		s.waiting = nil
		s.mu.Unlock()
		for _, w := range waiting {
			select {
			case <-time.After(500 * time.Microsecond):
			case <-s.Session.Done():
			}
			s.Session.Publish(context.Background(), []broker.Message{w.m}, func(_ int, err error) { w.done(0, err) })
		}
		select {
		case <-s.more:
		case <-s.Session.Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			s.over = true
			for _, w := range s.waiting {
				w.done(0, fmt.Errorf("%w: %w", broker.ErrNotSent, broker.ErrSessionLost))
			}
			return
		}
	}
}

// Links die repeatedly while many tasks are in flight. Each unsent task is sent over the next link, or kept in the
// outbox, before the tasks that follow it.
func TestPublishAllKeepsTheOrderOverLostLinks(t *testing.T) {
	t.Parallel()
	for name, outbox := range map[string]bool{"no outbox": false, "outbox": true} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withQueues(3), func(c *dispatcher.ServerConfig) {
					c.Broker = lagging{c.Broker}
					c.PublishTimeout = time.Hour
					if outbox {
						plainOutbox(c)
					}
				})
				const n = 3000
				over, ended := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(ended)
					for {
						select {
						case <-time.After(time.Duration(random.Int64N(int64(time.Second)))):
						case <-over:
							return
						}
						if random.IntN(2) == 0 {
							r.chaos.FailOpen(errors.New("down"))
						}
						r.chaos.Kill()
						<-time.After(time.Duration(random.Int64N(int64(time.Second))))
						up(r)
					}
				}()
				stop := sync.OnceFunc(func() { close(over); <-ended })
				defer stop()
				bursts := func(yield func(*dispatcher.Task) bool) {
					for i := range n {
						if i%100 == 0 {
							<-time.After(500 * time.Millisecond)
						}
						if !yield(named(fmt.Sprint(i), fmt.Sprint("k", i%3))) {
							return
						}
					}
				}
				i, inOutbox := 0, 0
				for task, err := range r.server.PublishAll(t.Context(), bursts) {
					if task.UUID != fmt.Sprint(i) {
						t.Fatalf("result %d belongs to task %s", i, task.UUID)
					}
					if outbox && errors.Is(err, dispatcher.ErrInOutbox) {
						inOutbox++
					} else if err != nil {
						t.Fatalf("task %d: %v", i, err)
					}
					i++
				}
				stop()
				if outbox {
					drained(t, r)
				}
				t.Logf("%d in the outbox, %d reconnects", inOutbox, r.server.Stats().Reconnects)
				if i != n || outbox != (inOutbox > 0) || r.server.Stats().Reconnects == 0 {
					t.Errorf("%d results, %d in the outbox", i, inOutbox)
				}
				for k := range 3 {
					if got, want := fmt.Sprint(r.ids(fmt.Sprint("k", k))), uuids(k, n, 3); got != want {
						t.Errorf("queue k%d holds %.600s …", k, got)
					}
				}
			})
		})
	}
}

func TestPublishAllWaitsForAConnectionOrKeepsTheTaskInTheOutbox(t *testing.T) {
	t.Parallel()
	for name, outbox := range map[string]bool{"no outbox": false, "outbox": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) {
					if outbox {
						plainOutbox(c)
					}
				})
				down(r, true)
				time.AfterFunc(10*time.Second, func() { up(r) })
				taken, results, began := 0, 0, time.Now()
				for task, err := range r.server.PublishAll(t.Context(), numbered(1200, &taken)) {
					results++
					if outbox {
						kept(t, task.UUID, err)
					} else {
						confirmed(t, task.UUID, err)
					}
				}
				if took := time.Since(began); outbox != (took == 0) || results != 1200 {
					t.Errorf("%d results after %v, want 1,200", results, took)
				}
				if outbox {
					drained(t, r)
				}
				if got := fmt.Sprint(r.ids("jobs")); got != uuids(0, 1200, 1) {
					t.Errorf("the queue holds %.600s …", got)
				}
			})
		})
	}
}

// On RabbitMQ too, every confirmed task is in the queue.
func TestPublishAllTellsTheTruthWhenLinksAreCut(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server(func(c *dispatcher.ServerConfig) {
			c.InitQueues = []dispatcher.Queue{{Name: v.name, BindingKeys: []string{v.name}}}
		})
		const n = 3000
		results := make(map[string]error, n)
		many := func(yield func(*dispatcher.Task) bool) {
			for i := range n {
				if i%1000 == 500 {
					v.kill()
				}
				if !yield(named(fmt.Sprint(i), v.name)) {
					return
				}
			}
		}
		for task, err := range s.PublishAll(v.t.Context(), many) {
			if results[task.UUID] = err; err != nil {
				outcome(v.t, task.UUID, err, dispatcher.ErrUnconfirmed)
			}
		}
		ds, err := v.session().TryGet(v.t.Context(), v.name, 2*n)
		if err != nil {
			v.t.Fatal(err)
		}
		there := make(map[string]bool, n)
		for _, d := range ds {
			if there[d.ID] {
				v.t.Errorf("task %s is in the queue twice", d.ID)
			}
			there[d.ID] = true
		}
		unknown := 0
		for id, err := range results {
			if err != nil {
				unknown++
			} else if !there[id] {
				v.t.Errorf("task %s was confirmed but is not in the queue", id)
			}
		}
		v.t.Logf("%d confirmed, %d unconfirmed, %d in the queue", len(results)-unknown, unknown, len(there))
		if len(results) != n || s.Stats().Reconnects == 0 {
			v.t.Errorf("%d results, %d reconnects", len(results), s.Stats().Reconnects)
		}
	})
}

// A dead link leaves tasks unconfirmed. Their outcomes are yielded at once, even while a later task waits for the next
// link.
func TestPublishAllYieldsWhatIsKnownBeforeItWaits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		stop func(*rig)
		want error
	}{
		"no connection": {func(r *rig) { r.chaos.FailOpen(errors.New("down")); r.chaos.Kill() }, dispatcher.ErrUnconfirmed},
		"blocked":       {func(r *rig) { r.chaos.HoldConfirms(false); r.chaos.Block(true) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stop, want := c.stop, c.want
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withQueue)
				r.chaos.HoldConfirms(true)
				began := time.Now()
				burst := func(yield func(*dispatcher.Task) bool) {
					for i := range 5 {
						if i == 4 {
							stop(r)
							synctest.Wait()
						}
						if !yield(named(fmt.Sprint(i), "jobs")) {
							return
						}
					}
					t.Error("PublishAll took another task")
				}
				n := 0
				for task, err := range r.server.PublishAll(t.Context(), burst) {
					if took := time.Since(began); task.UUID != fmt.Sprint(n) || took != 0 || !errors.Is(err, want) {
						t.Errorf("task %s after %v: %v", task.UUID, took, err)
					}
					if n++; n == 4 {
						up(r)
						r.chaos.Block(false)
						r.chaos.HoldConfirms(false)
						break
					}
				}
				if n != 4 {
					t.Errorf("%d results, want 4", n)
				}
			})
		})
	}
}

// doomed is a broker whose first session answers nothing until it dies. Then it refuses messages at once, just before
// its Done is closed.
type doomed struct {
	broker.Broker
	first *doomedSession
}

type doomedSession struct {
	broker.Session
	mu      sync.Mutex
	dead    bool
	waiting []func(int, error)
}

func (b *doomed) Open(ctx context.Context) (broker.Session, error) {
	s, err := b.Broker.Open(ctx)
	if b.first == nil && err == nil {
		b.first = &doomedSession{Session: s}
		return b.first, nil
	}
	return s, err
}

func (s *doomedSession) Publish(_ context.Context, _ []broker.Message, done func(int, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		done(0, fmt.Errorf("%w: %w", broker.ErrNotSent, broker.ErrSessionLost))
		return
	}
	s.waiting = append(s.waiting, done)
}

func (s *doomedSession) die() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
	for _, done := range s.waiting {
		done(0, broker.ErrUnconfirmed)
	}
}

// A session dies a moment before its supervisor notices.
func TestPublishAllYieldsWhatIsKnownWhenALinkDies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &doomed{}
		r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) { b.Broker, c.Broker = c.Broker, b })
		began := time.Now()
		burst := func(yield func(*dispatcher.Task) bool) {
			for i := range 5 {
				if i == 4 {
					b.first.die()
				}
				if !yield(named(fmt.Sprint(i), "jobs")) {
					return
				}
			}
		}
		n := 0
		for task, err := range r.server.PublishAll(t.Context(), burst) {
			if n < 4 && (!errors.Is(err, dispatcher.ErrUnconfirmed) || time.Since(began) != 0) || n == 4 && err != nil || task.UUID != fmt.Sprint(n) {
				t.Errorf("task %s after %v: %v", task.UUID, time.Since(began), err)
			}
			if n++; n == 4 {
				r.chaos.Kill() // now Done is closed
			}
		}
		if n != 5 {
			t.Errorf("%d results", n)
		}
	})
}

// If the broker blocks for a moment, the next task is sent as soon as that is over, even though an older one has no
// answer yet.
func TestPublishAllSendsWhenTheBrokerNoLongerBlocks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		r.chaos.HoldConfirms(true)
		sent := func(want int) {
			if info, err := r.session().Inspect(t.Context(), "jobs"); err != nil || info.Ready != want {
				t.Errorf("%d messages in the queue, want %d: %v", info.Ready, want, err)
			}
		}
		burst := func(yield func(*dispatcher.Task) bool) {
			if !yield(named("0", "jobs")) {
				return
			}
			r.chaos.Block(true)
			time.AfterFunc(900*time.Millisecond, func() { sent(1) })
			time.AfterFunc(time.Second, func() { r.chaos.Block(false) })
			time.AfterFunc(2*time.Second, func() { sent(2) })
			time.AfterFunc(5*time.Second, func() { r.chaos.HoldConfirms(false) })
			yield(named("1", "jobs"))
		}
		results := 0
		for task, err := range r.server.PublishAll(t.Context(), burst) {
			if results++; err != nil {
				t.Errorf("task %s: %v", task.UUID, err)
			}
		}
		if results != 2 {
			t.Errorf("%d results, want 2", results)
		}
	})
}
