package systemtest_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func TestNewServerNamesEveryBadField(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 256)
	for name, c := range map[string]struct {
		edit func(*dispatcher.ServerConfig)
		is   error  // nil: only the text is checked
		text string // "": the whole text is that of is
	}{
		"no exchange":    {func(c *dispatcher.ServerConfig) { c.Exchange = "" }, dispatcher.ErrExchangeRequired, ""},
		"no routing key": {func(c *dispatcher.ServerConfig) { c.DefaultRoutingKey = "" }, dispatcher.ErrDefaultRoutingKeyRequired, ""},
		"empty queue name": {func(c *dispatcher.ServerConfig) {
			c.InitQueues = []dispatcher.Queue{{Name: "", BindingKeys: []string{"k"}}}
		}, dispatcher.ErrEmptyQueueName, ""},
		"empty binding key": {func(c *dispatcher.ServerConfig) {
			c.InitQueues = []dispatcher.Queue{{Name: "q", BindingKeys: []string{""}}}
		}, dispatcher.ErrEmptyBindingKey, ""},
		"long exchange": {func(c *dispatcher.ServerConfig) { c.Exchange = long }, nil, "ServerConfig.Exchange is 256 bytes"},
		"long key":      {func(c *dispatcher.ServerConfig) { c.DefaultRoutingKey = long }, nil, "DefaultRoutingKey is 256 bytes"},
		"long queue":    {func(c *dispatcher.ServerConfig) { c.InitQueues = []dispatcher.Queue{{Name: long, BindingKeys: nil}} }, nil, "InitQueues[0].Name"},
		"long binding key": {func(c *dispatcher.ServerConfig) {
			c.InitQueues = []dispatcher.Queue{{Name: "q", BindingKeys: []string{long}}}
		}, nil, "InitQueues[0].BindingKeys[0]"},
		"negative interval":    {func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds = -1 }, nil, "IntervalSeconds is negative"},
		"overflowing interval": {func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds = 1 << 62 }, nil, "IntervalSeconds is too large"},
		"negative timeout":     {func(c *dispatcher.ServerConfig) { c.PublishTimeout = -1 }, nil, "PublishTimeout is negative"},
		"bad url":              {func(c *dispatcher.ServerConfig) { c.Broker, c.AMQPConnectionString = nil, "http://u:secret@h/" }, nil, "amqp://"},
		"bad url in a list": {func(c *dispatcher.ServerConfig) {
			c.Broker, c.AMQPConnectionString = nil, "amqp://h/,amqp://u:secret@h:port/"
		},
			nil, "URL 2 of 2"},
		"bad queue type":  {func(c *dispatcher.ServerConfig) { c.Broker, c.QueueType = nil, "stream" }, nil, "stream"},
		"broker and url":  {func(c *dispatcher.ServerConfig) { c.AMQPConnectionString = "amqp://u:secret@h/" }, nil, "Broker cannot be combined"},
		"broker and type": {func(c *dispatcher.ServerConfig) { c.QueueType = "quorum" }, nil, "Broker cannot be combined"},
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
				t.Errorf("got %q, want it to contain %q", err, c.text)
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
	queues := []dispatcher.Queue{{Name: "first", BindingKeys: []string{"a"}}}
	var cfg *dispatcher.ServerConfig
	r := newRig(t, func(c *dispatcher.ServerConfig) { c.InitQueues = queues; cfg = c })
	if cfg.PublishTimeout != 0 || cfg.MaxBodyBytes != 0 {
		t.Error("NewServer changed the caller's config")
	}
	queues[0].Name, queues[0].BindingKeys[0] = "changed", "changed"
	r.chaos.Kill()
	if err := r.server.PublishContext(t.Context(), &dispatcher.Task{Name: "n", RoutingKey: "a"}); err != nil {
		t.Fatal(err)
	}
	if n := r.inspect("first").Ready; n != 1 {
		t.Errorf("queue first has %d messages, want 1: the redeclared topology differs from the configured one", n)
	}
}

func TestTheServersPolicyIsCopied(t *testing.T) {
	t.Parallel()
	p := fast(2)
	r := newRig(t, func(c *dispatcher.ServerConfig) { c.Retry = p })
	*p = dispatcher.RetryPolicy{MaxAttempts: 1, InitialInterval: -1}
	r.worker("w", tasks{"n": fn(func() error { return errors.New("no") })})
	r.publish("n")
	if d := r.dead(1)[0]; d.Headers["x-dispatcher-attempt"] != int64(2) {
		t.Errorf("headers %v", d.Headers)
	}
}

func TestInitQueuesAreDeclaredAndBound(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *dispatcher.ServerConfig) {
		c.InitQueues = []dispatcher.Queue{{Name: "one", BindingKeys: []string{"a", "b"}}, {Name: "two", BindingKeys: nil}}
	})
	for _, key := range []string{"a", "b"} {
		if err := r.server.Publish(&dispatcher.Task{Name: "n", RoutingKey: key}); err != nil {
			t.Errorf("key %s: %v", key, err)
		}
	}
	if one, two := r.inspect("one").Ready, r.inspect("two").Ready; one != 2 || two != 0 {
		t.Errorf("queues have %d and %d messages, want 2 and 0", one, two)
	}
}

// D10: gofort/dispatcher had data races. Every exported method runs at the same time, with lost connections, under the
// race detector.
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
	startAgain(t, r.server)
	before := r.server.Stats().Succeeded
	if err := r.server.PublishContext(t.Context(), dispatcher.NewTask("n", 0)); err != nil {
		t.Errorf("publish afterwards: %v", err)
	}
	eventually(t, "a task runs afterwards", func() bool { return r.server.Stats().Succeeded > before })
	close(errc)
	for err := range errc {
		t.Error(err)
	}
}

// startAgain makes sure that the worker "w" is started. There may be no connection yet.
func startAgain(t *testing.T, s *dispatcher.Server) {
	t.Helper()
	w, err := s.GetWorkerByName("w")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the worker is started", func() bool {
		err := w.Start(s)
		return err == nil || errors.Is(err, dispatcher.ErrWorkerStarted)
	})
}
