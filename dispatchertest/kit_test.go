package dispatchertest_test

import (
	"crypto/tls"
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/dispatchertest"
)

// A test may pass the configuration that the program uses in production.
func TestConfigReplacesTheBrokerAndKeepsTheRest(t *testing.T) {
	t.Parallel()
	kit := dispatchertest.New()
	var calls []string
	cfg := &dispatcher.ServerConfig{
		AMQPConnectionString: "amqp://host/", TLSConfig: &tls.Config{}, SecureConnection: true, ConnectionName: "x", QueueType: "quorum",
		Exchange: "app", DefaultRoutingKey: "mail", PublishTimeout: time.Minute, MaxBodyBytes: 77, Logger: discard{},
		InitQueues: []dispatcher.Queue{{Name: "mail", BindingKeys: []string{"mail"}}},
		Hooks: dispatcher.Hooks{
			Published:     func(dispatcher.PublishEvent) { calls = append(calls, "published") },
			Finished:      func(dispatcher.FinishEvent) { calls = append(calls, "finished") },
			WorkerStarted: func(dispatcher.WorkerEvent) { calls = append(calls, "started") },
			WorkerStopped: func(dispatcher.WorkerEvent) { calls = append(calls, "stopped") },
		},
	}
	got := kit.Config(cfg)
	if cfg.Broker != nil || cfg.AMQPConnectionString == "" || cfg.TLSConfig == nil || got == cfg {
		t.Error("the caller's configuration was changed")
	}
	want := *cfg
	want.AMQPConnectionString, want.TLSConfig, want.SecureConnection, want.ConnectionName, want.QueueType = "", nil, false, "", ""
	want.Broker, want.Hooks = got.Broker, dispatcher.Hooks{}
	rest := *got
	rest.Hooks = dispatcher.Hooks{}
	if got.Broker == nil || !reflect.DeepEqual(rest, want) {
		t.Errorf("got  %+v\nwant %+v", rest, want)
	}

	server, _, err := dispatcher.NewServer(got)
	if err != nil {
		t.Fatal(err)
	}
	w, err := server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "mail"}, tasks{"n": {Function: func() {}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(server); err != nil {
		t.Fatal(err)
	}
	publish(t, server, dispatcher.NewTask("n"))
	idle(t, kit)
	server.Close()
	if text := strings.Join(calls, " "); text != "started published finished stopped" && text != "started finished published stopped" {
		t.Errorf("the caller's hooks: %s", text)
	}
}

// A test may change the result of Config and still pass it to NewServer.
func TestConfigTwiceIsOnce(t *testing.T) {
	t.Parallel()
	kit := dispatchertest.New()
	server := kit.NewServer(t, kit.Config(kit.Config(nil)))
	start(t, server, tasks{"n": {Function: func() {}}})
	publish(t, server, dispatcher.NewTask("n"))
	if r := idle(t, kit); len(r.Succeeded) != 1 {
		t.Error(r)
	}
	kit.RequirePublished(t, "n")
}

func TestNewServerFailsTheTestOverAConfiguration(t *testing.T) {
	t.Parallel()
	wantFailure(t, "dispatchertest: create a server: Exchange parameter is required", func(tb testing.TB) {
		if s := dispatchertest.New().NewServer(tb, &dispatcher.ServerConfig{DefaultRoutingKey: "k"}); s != nil {
			t.Error("NewServer returned a server")
		}
	})
}

func TestNewServerLogsToTheTestAndEndsWithIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeTB{TB: t}
		kit := dispatchertest.New()
		cfg := kit.Config(nil)
		stopped := make(chan bool)
		cfg.Hooks = dispatcher.Tee(cfg.Hooks, dispatcher.Hooks{WorkerStopped: func(dispatcher.WorkerEvent) { close(stopped) }})
		server := kit.NewServer(fake, cfg)
		start(t, server, tasks{"n": {Timeout: time.Second, Function: func() { <-time.After(time.Hour) }}})
		publish(t, server, dispatcher.NewTask("n"))
		if r := idle(t, kit); len(r.DeadLetters) != 1 || r.DeadLetters[0].Reason != dispatcher.ReasonTimeout {
			t.Error(r)
		}
		fake.end()
		if err := server.Publish(dispatcher.NewTask("n")); !errors.Is(err, dispatcher.ErrServerClosed) {
			t.Errorf("after the test: %v", err)
		}
		log := fake.log.String()
		for _, want := range []string{"info: worker receives tasks queue=test worker=worker", "error: task is a dead letter queue=test worker=worker task=n", "reason=timeout"} {
			if !strings.Contains(log, want) {
				t.Errorf("no %q in the log\n%s", want, log)
			}
		}
		<-stopped // the call has outlived the test, and its worker has logged that
		if after := fake.log.String(); after != log {
			t.Errorf("logged after the test: %s", strings.TrimPrefix(after, log))
		}
	})
}
