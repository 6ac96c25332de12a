package systemtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

var (
	errOtherProperties = fmt.Errorf("406 PRECONDITION_FAILED - inequivalent arg: %w", broker.ErrRejected)
	errAway            = fmt.Errorf("404 NOT_FOUND - home node is down or inaccessible: %w", broker.ErrUnavailable)
)

// awayServer returns the configuration of a server on its own broker.
func awayServer(retries int, queues ...string) (*brokertest.Chaos, dispatcher.ServerConfig) {
	mem := memory.New()
	chaos := brokertest.NewChaos(mem, func() { mem.KillSessions() })
	cfg := dispatcher.ServerConfig{
		Broker: chaos, Exchange: "jobs", DefaultRoutingKey: "jobs", Logger: &recorder{},
		ReconnectionRetries: retries, ReconnectionRetriesForever: retries < 0,
	}
	cfg.ReconnectionRetries = max(retries, 0)
	for _, q := range queues {
		cfg.InitQueues = append(cfg.InitQueues, dispatcher.Queue{Name: q, BindingKeys: []string{q}})
	}
	return chaos, cfg
}

// serve starts a server and closes it when the test ends.
func serve(t *testing.T, cfg *dispatcher.ServerConfig) *dispatcher.Server {
	t.Helper()
	s, _, err := dispatcher.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// A queue of InitQueues was declared again by someone else, with other properties. Everything else goes on, and Health
// reports the queue.
func TestRefusedQueueDoesNotStopTheServer(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *dispatcher.ServerConfig) {
		c.InitQueues = []dispatcher.Queue{{Name: "other", BindingKeys: []string{"other"}}, {Name: "last", BindingKeys: []string{"last"}}}
		c.ReconnectionRetries, c.ReconnectionRetriesForever = 3, false
	})
	ran := make(chan int, 10)
	r.worker("w", tasks{"f": fn(func(n int) { ran <- n })})
	r.chaos.FailQueue("other", errOtherProperties)
	for round := range 3 {
		opens := r.chaos.Opens()
		r.chaos.Kill()
		eventually(t, "the server is connected again", func() bool { return r.chaos.Opens() > opens })
		if err := r.server.PublishContext(t.Context(), dispatcher.NewTask("f", round)); err != nil {
			t.Fatal(err)
		}
		for wait(t, ran, "call") != round { // an earlier task whose ack was lost with the link
		}
		if err := r.server.PublishContext(t.Context(), &dispatcher.Task{Name: "x", RoutingKey: "last"}); err != nil {
			t.Errorf("publish to the queue after the refused one: %v", err)
		}
	}
	h := r.server.Health(t.Context())
	if len(h.Undeclared) != 1 || h.Undeclared[0].Name != "other" || h.Undeclared[0].Kind != "queue" || !strings.Contains(h.Undeclared[0].Problem, "406") ||
		h.Undeclared[0].Since.IsZero() || h.OK() {
		t.Errorf("Health: OK %t, %+v", h.OK(), h.Undeclared)
	}
	if text, err := json.Marshal(h.Undeclared); err != nil || !strings.Contains(string(text), `"name":"other"`) {
		t.Errorf("Undeclared as JSON: %s, %v", text, err)
	}
	if n := strings.Count(r.log.String(), `warn: cannot declare; trying again while everything else continues queue=other `); n != 1 {
		t.Errorf("the refusal was logged %d times, want once", n)
	}
	r.chaos.FailQueue("other", nil)
	eventually(t, "the queue is declared", func() bool { h := r.server.Health(t.Context()); return h.OK() && h.Undeclared == nil })
	eventually(t, "the declaration is logged", func() bool { return strings.Contains(r.log.String(), `info: declared again queue=other`) })
}

// Topology is declared only when the server connects. Only at the first connect can a refusal fail the server.
func TestRefusedQueueIsAnErrorAtTheFirstConnect(t *testing.T) {
	t.Parallel()
	chaos, cfg := awayServer(-1, "q")
	chaos.FailQueue("q", errOtherProperties)
	if _, _, err := dispatcher.NewServer(&cfg); !errors.Is(err, broker.ErrRejected) || chaos.Opens() != 1 {
		t.Errorf("after %d tries: %v", chaos.Opens(), err)
	}
}

// A refused queue of a worker does not affect its other queues either.
func TestWorkerRunsWhileSomeOfItsQueuesAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ran := make(chan int, 10)
	w := r.worker("w", tasks{"f": fn(func(n int) { ran <- n })})
	for _, q := range []string{"jobs", "jobs.dead", "jobs.suspects"} {
		r.chaos.FailQueue(q, errOtherProperties)
	}
	opens := r.chaos.Opens()
	r.chaos.Kill()
	eventually(t, "the server is connected again", func() bool { return r.chaos.Opens() > opens })
	if err := r.server.PublishContext(t.Context(), dispatcher.NewTask("f", 1)); err != nil {
		t.Fatal(err)
	}
	wait(t, ran, "call")
	eventually(t, "Health reports all three queues", func() bool {
		h := r.server.Health(t.Context())
		return len(h.Undeclared) == 3 && h.Workers[0].Consuming && !h.OK()
	})
	w.Close()
	if h := r.server.Health(t.Context()); h.Undeclared != nil || !h.OK() {
		t.Errorf("Health still reports the worker's queues after Close: %+v", h.Undeclared)
	}
}

// A queue that is away stops only its own worker. The worker resumes soon after the queue is back.
func TestWorkerOfAQueueThatIsAwayComesBackSoon(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		chaos, cfg := awayServer(-1)
		log := cfg.Logger.(*recorder)
		s := serve(t, &cfg)
		ran := make(chan string, 10)
		for _, name := range []string{"here", "away"} {
			w, err := s.NewWorker(&dispatcher.WorkerConfig{Name: name, Queue: name, BindingKeys: []string{name}},
				tasks{"f": fn(func() { ran <- name })})
			if err == nil {
				err = w.Start(s)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		<-time.After(time.Minute)
		for _, q := range []string{"away", "away.dead"} {
			chaos.FailQueue(q, errAway)
		}
		chaos.Kill()
		<-time.After(10 * time.Minute)
		publish := func(key string) {
			if err := s.Publish(&dispatcher.Task{Name: "f", RoutingKey: key}); err != nil {
				t.Fatal(err)
			}
		}
		publish("here")
		if got := <-ran; got != "here" {
			t.Fatalf("ran %q", got)
		}
		if h := s.Health(t.Context()); h.OK() || h.State != dispatcher.StateConnected {
			t.Errorf("health %+v", h)
		}
		for _, q := range []string{"away", "away.dead"} {
			chaos.FailQueue(q, nil)
		}
		back := time.Now()
		publish("away")
		<-ran
		if took := time.Since(back); took > 3*time.Second {
			t.Errorf("the worker resumed after %v, want at most 3s", took)
		}
		eventually(t, "all queues are declared", func() bool { return s.Health(t.Context()).OK() })
		if took := time.Since(back); took > 3*time.Second {
			t.Errorf("all queues were declared after %v, want at most 3s", took)
		}
		if n := strings.Count(log.String(), `cannot consume; trying again queue=away worker=away `); n != 1 {
			t.Errorf("the failed consume was logged %d times, want once", n)
		}
	})
}

// If a classic queue's node is down when the program starts, that is not a programmer's error.
func TestNewServerWaitsForAQueueThatIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		chaos, cfg := awayServer(-1, "q")
		chaos.FailQueue("q", errAway)
		time.AfterFunc(time.Hour, func() { chaos.FailQueue("q", nil) })
		began := time.Now()
		serve(t, &cfg)
		if took := time.Since(began); took < time.Hour || took > time.Hour+3*time.Second {
			t.Errorf("connected after %v, although the queue was back after an hour", took)
		}
	})
}

func TestNewServerGivesUpAQueueThatIsAwayAfterItsRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		chaos, cfg := awayServer(3, "q")
		chaos.FailQueue("q", errAway)
		if _, _, err := dispatcher.NewServer(&cfg); !errors.Is(err, dispatcher.ErrUnavailable) || chaos.Opens() != 4 {
			t.Errorf("after %d tries: %v", chaos.Opens(), err)
		}
	})
}

func TestNewWorkerAndStartWaitForAQueueThatIsAway(t *testing.T) {
	t.Parallel()
	for _, away := range []string{"q", "q.dead", "q.suspects"} {
		t.Run(away, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				chaos, cfg := awayServer(-1)
				s := serve(t, &cfg)
				worker := &dispatcher.WorkerConfig{Name: "w", Queue: "q"}
				absent := func(for_ time.Duration) {
					chaos.FailQueue(away, errAway)
					time.AfterFunc(for_, func() { chaos.FailQueue(away, nil) })
				}
				bounded := func(what string, f func() error) {
					t.Helper()
					began := time.Now()
					err := f()
					if took := time.Since(began); !errors.Is(err, dispatcher.ErrUnavailable) || took > 31*time.Second {
						t.Errorf("%s after %v: %v", what, took, err)
					}
				}

				absent(time.Minute)
				bounded("NewWorker", func() error { _, err := s.NewWorker(worker, nil); return err })
				<-time.After(time.Minute)
				absent(20 * time.Second)
				w, err := s.NewWorker(worker, nil) // the worker's name is still free
				if err != nil {
					t.Fatal(err)
				}
				absent(time.Minute)
				bounded("Start", func() error { return w.Start(s) })
				<-time.After(time.Minute)
				absent(20 * time.Second)
				if err := w.Start(s); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// Once a server is closed, it does not wait for queues.
func TestCloseEndsTheWaitForAQueueThatIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		chaos, cfg := awayServer(-1)
		s, _, err := dispatcher.NewServer(&cfg)
		if err != nil {
			t.Fatal(err)
		}
		chaos.FailQueue("q", errAway)
		made := make(chan error, 1)
		go func() {
			_, err := s.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "q"}, nil)
			made <- err
		}()
		synctest.Wait()
		s.Close()
		began := time.Now()
		err = <-made
		if took := time.Since(began); took > 3*time.Second || !errors.Is(err, dispatcher.ErrServerClosed) {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

// While nodes answer but their sessions end soon, the pauses do not grow to half a minute.
func TestPausesDoNotGrowWhileANodeAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		chaos, cfg := awayServer(-1)
		serve(t, &cfg)
		for range 50 {
			opens, cut := chaos.Opens(), time.Now()
			chaos.Kill()
			for chaos.Opens() == opens {
				<-time.After(10 * time.Millisecond)
			}
			if took := time.Since(cut); took > 2*time.Second {
				t.Fatalf("the next session was opened after %v", took)
			}
			synctest.Wait()
		}
	})
}

// deadly is a broker whose sessions end when a certain queue is declared. RabbitMQ does the same to a connection when
// it cannot make a quorum queue.
type deadly struct {
	*memory.Broker
	queue string
	armed chan struct{} // once it is closed, sessions end
}

type deadlySession struct {
	broker.Session
	b *deadly
}

func (b *deadly) Open(ctx context.Context) (broker.Session, error) {
	s, err := b.Broker.Open(ctx)
	if err != nil {
		return nil, err
	}
	return &deadlySession{s, b}, nil
}

func (s *deadlySession) Declare(ctx context.Context, t broker.Topology) error {
	for _, q := range t.Queues {
		s.touch(ctx, q.Name)
	}
	return s.Session.Declare(ctx, t)
}

func (s *deadlySession) Consume(ctx context.Context, o broker.ConsumeOptions) (broker.Consumer, error) {
	s.touch(ctx, "consume "+o.Queue)
	return s.Session.Consume(ctx, o)
}

func (s *deadlySession) touch(ctx context.Context, queue string) {
	select {
	case <-s.b.armed:
		if queue == s.b.queue {
			_ = s.Close(ctx)
		}
	default:
	}
}

// If the broker ends a session because of a declaration or a consume, new sessions must not begin with that operation.
func TestDeclarationThatEndsTheSessionIsPutOff(t *testing.T) {
	t.Parallel()
	for _, queue := range []string{"init", "deadly", "consume deadly"} {
		t.Run(queue, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				_, cfg := awayServer(-1, "init")
				mem := memory.New()
				b := &deadly{Broker: mem, queue: queue, armed: make(chan struct{})}
				cfg.Broker = b
				s := serve(t, &cfg)
				ran := make(chan struct{}, 1)
				for _, name := range []string{"good", "deadly"} {
					w, err := s.NewWorker(&dispatcher.WorkerConfig{Name: name, Queue: name, BindingKeys: []string{name}},
						tasks{"f": fn(func() { ran <- struct{}{} })})
					if err == nil {
						err = w.Start(s)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				<-time.After(time.Minute)
				close(b.armed)
				mem.KillSessions()
				<-time.After(5 * time.Minute)
				up := 0
				for range 1000 {
					<-time.After(100 * time.Millisecond)
					h := s.Health(t.Context())
					if i := 1; h.State == dispatcher.StateConnected && h.Workers[i].Name == "good" && h.Workers[i].Consuming {
						up++
					}
				}
				t.Logf("the other worker was consuming in %d of 1000 samples", up)
				if up < 800 {
					t.Errorf("connected with the other worker consuming in %d of 1000 samples, want 800", up)
				}
				if err := s.PublishContext(t.Context(), &dispatcher.Task{Name: "f", RoutingKey: "good"}); err != nil {
					t.Fatal(err)
				}
				<-ran
			})
		})
	}
}

// A queue of InitQueues, a worker's dead letter queue and the exchange were declared again by others, with other
// properties. After the next cut, the server works with what exists.
func TestRedeclaredThingsDoNotStopTheServer(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	init := r.name + ".init"
	r.serve(r.ownQueue, func(c *dispatcher.ServerConfig) {
		c.InitQueues = append(c.InitQueues, dispatcher.Queue{Name: init, BindingKeys: []string{init}})
	})
	ran := make(chan int, 10)
	r.worker(tasks{"f": fn(func(n int) { ran <- n })})
	ch := r.raw()
	for _, q := range []string{init, r.name + ".dead"} {
		if _, err := ch.QueueDelete(q, false, false, false); err != nil {
			t.Fatal(err)
		}
		if _, err := ch.QueueDeclare(q, true, false, false, false, amqp.Table{"x-max-length": int32(7)}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.sweep(q) })
	}
	if err := ch.ExchangeDelete(r.name, false, false); err != nil {
		t.Fatal(err)
	}
	if err := ch.ExchangeDeclare(r.name, "fanout", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	r.cut()
	r.proxy.Refuse(false)
	eventually(t, "the server is connected and its worker consumes", func() bool {
		h := r.server.Health(t.Context())
		return h.State == dispatcher.StateConnected && h.Workers[0].Consuming
	})
	r.publish("f", 1) // a fanout exchange takes it too
	if n := wait(t, ran, "call"); n != 1 {
		t.Errorf("ran %d", n)
	}
	want := map[string]bool{init: true, r.name + ".dead": true, r.name: true}
	eventually(t, "Health reports all three", func() bool { return len(r.server.Health(t.Context()).Undeclared) == 3 })
	for _, u := range r.server.Health(t.Context()).Undeclared {
		if !want[u.Name] || !strings.Contains(u.Problem, "406") {
			t.Errorf("unexpected Undeclared %+v", u)
		}
	}
	for _, q := range []string{init, r.name + ".dead"} {
		if _, err := ch.QueueDelete(q, false, false, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := ch.ExchangeDelete(r.name, false, false); err != nil {
		t.Fatal(err)
	}
	// The pauses between the tries grow up to 30 s. On RabbitMQ 4.3 the new exchange may be unknown to a binding at first.
	eventuallyWithin(t, 3*patience, "everything is declared again", func() bool {
		return r.server.Health(t.Context()).Undeclared == nil
	})
}
