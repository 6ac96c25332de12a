package dispatcher_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func TestNewServerNamesEveryBadField(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 256)
	for name, c := range map[string]struct {
		edit func(*dispatcher.ServerConfig)
		is   error  // nil: text only
		text string // "": the whole text of is
	}{
		"no exchange":          {func(c *dispatcher.ServerConfig) { c.Exchange = "" }, dispatcher.ErrExchangeRequired, ""},
		"no routing key":       {func(c *dispatcher.ServerConfig) { c.DefaultRoutingKey = "" }, dispatcher.ErrDefaultRoutingKeyRequired, ""},
		"empty queue name":     {func(c *dispatcher.ServerConfig) { c.InitQueues = []dispatcher.Queue{{"", []string{"k"}}} }, dispatcher.ErrEmptyQueueName, ""},
		"empty binding key":    {func(c *dispatcher.ServerConfig) { c.InitQueues = []dispatcher.Queue{{"q", []string{""}}} }, dispatcher.ErrEmptyBindingKey, ""},
		"long exchange":        {func(c *dispatcher.ServerConfig) { c.Exchange = long }, nil, "ServerConfig.Exchange is 256 bytes"},
		"long key":             {func(c *dispatcher.ServerConfig) { c.DefaultRoutingKey = long }, nil, "DefaultRoutingKey is 256 bytes"},
		"long queue":           {func(c *dispatcher.ServerConfig) { c.InitQueues = []dispatcher.Queue{{long, nil}} }, nil, "InitQueues[0].Name"},
		"long binding key":     {func(c *dispatcher.ServerConfig) { c.InitQueues = []dispatcher.Queue{{"q", []string{long}}} }, nil, "InitQueues[0].BindingKeys[0]"},
		"negative interval":    {func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds = -1 }, nil, "IntervalSeconds is negative"},
		"overflowing interval": {func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds = 1 << 62 }, nil, "IntervalSeconds is too large"},
		"negative timeout":     {func(c *dispatcher.ServerConfig) { c.PublishTimeout = -1 }, nil, "PublishTimeout is negative"},
		"bad url":              {func(c *dispatcher.ServerConfig) { c.Broker, c.AMQPConnectionString = nil, "http://u:secret@h/" }, nil, "amqp://"},
		"bad url in a list": {func(c *dispatcher.ServerConfig) {
			c.Broker, c.AMQPConnectionString = nil, "amqp://h/,amqp://u:secret@h:port/"
		},
			nil, "URL 2 of 2"},
		"bad queue type":  {func(c *dispatcher.ServerConfig) { c.Broker, c.QueueType = nil, "stream" }, nil, "stream"},
		"broker and url":  {func(c *dispatcher.ServerConfig) { c.AMQPConnectionString = "amqp://u:secret@h/" }, nil, "Broker excludes"},
		"broker and type": {func(c *dispatcher.ServerConfig) { c.QueueType = "quorum" }, nil, "Broker excludes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := dispatcher.ServerConfig{Broker: memory.New(), Exchange: "e", DefaultRoutingKey: "k"}
			c.edit(&cfg)
			s, ch, err := dispatcher.NewServer(&cfg)
			if s != nil || ch != nil || err == nil {
				t.Fatalf("got %v, %v, %v; want only an error", s, ch, err)
			}
			if c.is != nil && (!errors.Is(err, c.is) || err.Error() != c.is.Error()) {
				t.Errorf("got %q, want %q and no other text", err, c.is)
			}
			if !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %q, want it to say %q", err, c.text)
			}
		})
	}
	if _, _, err := dispatcher.NewServer(nil); err == nil {
		t.Error("nil config: no error")
	}
	_, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{})
	for _, want := range []error{dispatcher.ErrExchangeRequired, dispatcher.ErrDefaultRoutingKeyRequired} {
		if !errors.Is(err, want) {
			t.Errorf("empty config: %q does not report %q", err, want)
		}
	}
}

func TestConfigIsCopiedAndNeverWritten(t *testing.T) {
	t.Parallel()
	queues := []dispatcher.Queue{{"first", []string{"a"}}}
	var cfg *dispatcher.ServerConfig
	r := newRig(t, func(c *dispatcher.ServerConfig) { c.InitQueues = queues; cfg = c })
	if cfg.PublishTimeout != 0 || cfg.MaxBodyBytes != 0 {
		t.Error("the caller's config was written")
	}
	queues[0].Name, queues[0].BindingKeys[0] = "changed", "changed"
	r.chaos.Kill()
	if err := r.server.PublishContext(t.Context(), &dispatcher.Task{Name: "n", RoutingKey: "a"}); err != nil {
		t.Fatal(err)
	}
	if n := r.inspect("first").Ready; n != 1 {
		t.Errorf("queue first holds %d, want 1: the redeclared topology is not the one given", n)
	}
}

func TestInitQueuesAreDeclaredAndBound(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *dispatcher.ServerConfig) {
		c.InitQueues = []dispatcher.Queue{{"one", []string{"a", "b"}}, {"two", nil}}
	})
	for _, key := range []string{"a", "b"} {
		if err := r.server.Publish(&dispatcher.Task{Name: "n", RoutingKey: key}); err != nil {
			t.Errorf("key %s: %v", key, err)
		}
	}
	if one, two := r.inspect("one").Ready, r.inspect("two").Ready; one != 2 || two != 0 {
		t.Errorf("queues hold %d and %d, want 2 and 0", one, two)
	}
}

// gofort/dispatcher hung for ever here (D3).
func TestD3UnreachableBrokerIsAnErrorAfterTheRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		chaos := brokertest.NewChaos(memory.New(), nil)
		down := errors.New("no route to host")
		chaos.FailOpen(down)
		cfg := dispatcher.ServerConfig{
			Broker: chaos, Exchange: "e", DefaultRoutingKey: "k", Logger: &recorder{},
			ReconnectionRetries: 3, ReconnectionIntervalSeconds: 10,
		}
		began := time.Now()
		_, _, err := dispatcher.NewServer(&cfg)
		if !errors.Is(err, down) {
			t.Fatalf("got %v, want %v", err, down)
		}
		if chaos.Opens() != 4 {
			t.Errorf("dialled %d times, want 1 + 3", chaos.Opens())
		}
		if took := time.Since(began); took < 24*time.Second || took > 36*time.Second {
			t.Errorf("took %v, want three pauses of 10 s ± 20 %%", took)
		}
	})
}

// The zero value is patient once it has been connected, and tells of a wrong address at once.
func TestRetriesOfTheFirstConnectAndOfAnOutage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		retries     int
		forever     bool
		first, more int64 // tries of the first connect, and of an outage; 0 = for ever
	}{
		{0, false, 1, 0}, {-1, false, 1, 1}, {2, false, 3, 3}, {0, true, 0, 0}, {-1, true, 0, 0}, {2, true, 0, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			chaos := brokertest.NewChaos(memory.New(), nil)
			cfg := &dispatcher.ServerConfig{
				Broker: chaos, Exchange: "e", DefaultRoutingKey: "k", Logger: &recorder{},
				ReconnectionRetries: c.retries, ReconnectionRetriesForever: c.forever,
			}
			down := errors.New("down")
			chaos.FailOpen(down)
			ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
			defer cancel()
			_, _, err := dispatcher.NewServerContext(ctx, cfg)
			if !errors.Is(err, down) || (ctx.Err() != nil) != (c.first == 0) || c.first > 0 && int64(chaos.Opens()) != c.first {
				t.Errorf("%+v: %d tries of the first connect, %v", c, chaos.Opens(), err)
			}
			chaos.FailOpen(nil)
			server, lost, err := dispatcher.NewServer(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			chaos.FailOpen(down)
			before := chaos.Opens()
			chaos.Kill()
			select {
			case <-lost:
			case <-time.After(24 * time.Hour):
			}
			tries := int64(chaos.Opens() - before)
			if given := server.Health(t.Context()).State == dispatcher.StateGivenUp; given != (c.more > 0) || given && tries != c.more {
				t.Errorf("%+v: %d tries of an outage, given up: %t", c, tries, given)
			}
			if c.more == 0 { // and it is back when the broker is
				chaos.FailOpen(nil)
				<-time.After(time.Minute)
				if h := server.Health(t.Context()); h.State != dispatcher.StateConnected {
					t.Errorf("%+v: %s", c, h.State)
				}
			}
		})
	}
}

func TestFirstConnectEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		chaos := brokertest.NewChaos(memory.New(), nil)
		chaos.FailOpen(errors.New("down"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, _, err := dispatcher.NewServerContext(ctx, &dispatcher.ServerConfig{
			Broker: chaos, Exchange: "e", DefaultRoutingKey: "k", ReconnectionRetriesForever: true, Logger: &recorder{},
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestAPermanentErrorIsNotRetried(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*brokertest.Chaos, error){
		"open":    (*brokertest.Chaos).FailOpen,
		"declare": (*brokertest.Chaos).RefuseDeclare,
	} {
		chaos := brokertest.NewChaos(memory.New(), nil)
		refused := errors.Join(broker.ErrPermanent, broker.ErrRejected)
		fail(chaos, refused)
		_, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
			Broker: chaos, Exchange: "e", DefaultRoutingKey: "k", ReconnectionRetriesForever: true, Logger: &recorder{},
		})
		if !errors.Is(err, broker.ErrRejected) || chaos.Opens() != 1 {
			t.Errorf("%s: %v after %d tries, want the error after one", name, err, chaos.Opens())
		}
	}
}

// After D3's second half: the channel fires once the retries of an outage are used up.
func TestD3GivenUpConnectionClosesTheChannelAfterTheTasks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *dispatcher.ServerConfig) {
			c.ReconnectionRetriesForever, c.ReconnectionRetries = false, 2
		})
		running, finish := make(chan struct{}), make(chan struct{})
		r.worker("w", tasks{"long": fn(func() { close(running); <-finish })})
		r.publish("long")
		wait(t, running, "start of the task")

		r.chaos.FailOpen(errors.New("gone"))
		r.chaos.Kill()
		<-time.After(10 * time.Second)
		if h := r.server.Health(t.Context()); h.State != dispatcher.StateGivenUp || h.LastError == nil || h.OK() {
			t.Errorf("health %+v, want given up with the error", h)
		}
		select {
		case <-r.givenUp:
			t.Error("the channel is closed while a task runs")
		default:
		}
		close(finish)
		wait(t, r.givenUp, "closed channel")
		if err := r.server.Publish(dispatcher.NewTask("long")); !errors.Is(err, dispatcher.ErrNotSent) {
			t.Errorf("publish: %v, want ErrNotSent", err)
		}
	})
}

func TestGivenUpConnectionWaitsForTasksOnlyUntilTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *dispatcher.ServerConfig) {
			c.ReconnectionRetriesForever, c.ReconnectionRetries, c.ShutdownTimeout = false, -1, time.Minute
		})
		running, finish := make(chan struct{}), make(chan struct{})
		r.worker("w", tasks{"stuck": fn(func() { close(running); <-finish })})
		r.publish("stuck")
		wait(t, running, "start of the task")
		began := time.Now()
		r.chaos.FailOpen(errors.New("gone"))
		r.chaos.Kill()
		<-r.givenUp
		if took := time.Since(began); took < time.Minute || took > 80*time.Second {
			t.Errorf("the channel was closed after %v, want about a minute", took)
		}
		close(finish)
	})
}

func TestCloseLeavesTheChannelOpen(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.server.Close()
	select {
	case <-r.givenUp:
		t.Error("Close closed the channel: programs would exit with an error")
	default:
	}
}

// gofort/dispatcher hung in each of these (D4).
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
						t.Errorf("start after close: %v, want ErrServerClosed", err)
					}
					if _, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "x", Queue: "q"}, nil); !errors.Is(err, dispatcher.ErrServerClosed) {
						t.Errorf("new worker after close: %v", err)
					}
				})
			})
		}
	}
}

func TestTopologyAndWorkersComeBackAfterALostConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		got := make(chan int, 10)
		r.worker("w", tasks{"n": fn(func(n int) { got <- n })})
		for i := range 3 {
			r.publish("n", i)
			wait(t, got, "task")
			if err := r.session().Delete(t.Context(), "jobs"); err != nil { // an operator's mistake, made good by redeclaring
				t.Fatal(err)
			}
			r.chaos.Kill()
			synctest.Wait()
			eventuallyOK(t, r)
		}
		if n := r.server.Stats().Reconnects; n != 3 {
			t.Errorf("%d reconnects, want 3", n)
		}
	})
}

// eventuallyOK waits for a healthy server, in fake or real time.
func eventuallyOK(t *testing.T, r *rig) {
	t.Helper()
	eventually(t, "healthy server", func() bool { return r.server.Health(t.Context()).OK() })
}

func TestADeletedQueueIsHealedWithoutANewConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		got := make(chan int, 1)
		r.worker("w", tasks{"n": fn(func(n int) { got <- n })})
		if err := r.session().Delete(t.Context(), "jobs"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		eventuallyOK(t, r)
		r.publish("n", 7)
		if n := wait(t, got, "task"); n != 7 {
			t.Errorf("got %d", n)
		}
		if n := r.server.Stats().Reconnects; n != 0 {
			t.Errorf("%d reconnects, want none", n)
		}
	})
}

func TestABrokerThatDropsAtOnceIsNotDialledInAHotLoop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds, c.PublishTimeout = 0, time.Minute })
		began := time.Now()
		for time.Since(began) < 10*time.Minute {
			eventuallyConnected(t, r)
			r.chaos.Kill()
			synctest.Wait()
		}
		// A broker that lets us in is tried again after 1.2 s at least, and sooner a few times at the beginning.
		if n := r.chaos.Opens(); n > 520 {
			t.Errorf("dialled %d times in ten minutes", n)
		}
	})
}

func eventuallyConnected(t *testing.T, r *rig) {
	t.Helper()
	if err := r.server.PublishContext(t.Context(), dispatcher.NewTask("probe")); !errors.Is(err, dispatcher.ErrUnroutable) {
		t.Fatalf("probe: %v", err)
	}
}

// D10: gofort/dispatcher's data races. Every exported method at once, with lost connections, under the race detector.
func TestD10EverythingAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds = 0 })
	r.worker("w", tasks{"n": fn(func(context.Context, int) {})})
	const rounds = 40
	errc := make(chan error, 100)
	loops := []func(i int){
		func(i int) { _ = r.server.Publish(dispatcher.NewTask("n", i)) },
		func(i int) { _ = r.server.PublishContext(t.Context(), dispatcher.NewTask("n", i)) },
		func(i int) {
			_ = r.server.PublishBatch(t.Context(), []*dispatcher.Task{dispatcher.NewTask("n", i), nil, dispatcher.NewTask("")})
		},
		func(int) { r.server.Health(t.Context()) },
		func(int) { r.server.Stats() },
		func(int) {
			w, err := r.server.GetWorkerByName("w")
			if err != nil {
				errc <- err
				return
			}
			w.Close()
			_ = w.Start(r.server)
		},
		func(i int) {
			name := string(rune('a' + i))
			if w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: name, Queue: "jobs"}, tasks{"n": fn(func(int) {})}); err == nil {
				_ = w.Start(r.server)
			}
		},
		func(i int) {
			if i%10 == 0 {
				r.chaos.Kill()
			}
		},
	}
	done := make(chan struct{})
	for _, loop := range loops {
		go func() {
			defer func() { done <- struct{}{} }()
			for i := range rounds {
				loop(i)
			}
		}()
	}
	for range loops {
		wait(t, done, "end of a loop")
	}
	close(errc)
	for err := range errc {
		t.Error(err)
	}
}
