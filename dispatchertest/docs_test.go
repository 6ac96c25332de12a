package dispatchertest_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/dispatchertest"
)

// docs/testing.md shows these tests word for word.

// The code that docs/testing.md shows is the code that runs here.
func TestTheDocumentShowsTestsThatRun(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile("../docs/testing.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("docs_test.go")
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	for _, part := range strings.Split(string(document), "```go\n")[1:] {
		code, _, _ := strings.Cut(part, "```")
		if shown++; !strings.Contains(string(source), code) {
			t.Errorf("docs/testing.md shows code that is not in docs_test.go:\n%s", code)
		}
	}
	if shown < 5 {
		t.Errorf("docs/testing.md shows only %d pieces of code", shown)
	}

	kit, fake := dispatchertest.New(), &fakeTB{TB: t}
	if err := welcome(kit.NewServer(t, nil), "ann@example.org"); err != nil {
		t.Fatal(err)
	}
	kit.RequirePublished(fake, "send", "eve@example.org", 2)
	if !strings.Contains(string(document), fake.failure) || fake.failure == "" {
		t.Errorf("docs/testing.md does not show this failure:\n%s", fake.failure)
	}
}

// welcome is the code under test. It publishes.
func welcome(server *dispatcher.Server, to string) error {
	task := dispatcher.NewTask("send", to, 2)
	task.Headers = map[string]any{"tenant": "blue"}
	return server.Publish(task)
}

func TestWelcomeSendsOneMail(t *testing.T) {
	kit := dispatchertest.New()
	server := kit.NewServer(t, nil)

	if err := welcome(server, "ann@example.org"); err != nil {
		t.Fatal(err)
	}

	task := kit.RequirePublished(t, "send", "ann@example.org", 2)
	if task.Headers["tenant"] != "blue" || task.Delay != 0 {
		t.Errorf("headers %v, delay %v", task.Headers, task.Delay)
	}
	kit.RequireNotPublished(t, "bill")
}

// publisher is what this program needs of a *dispatcher.Server.
type publisher interface {
	PublishBatch(ctx context.Context, tasks []*dispatcher.Task) []error
}

func campaign(ctx context.Context, p publisher, all ...string) error {
	var tasks []*dispatcher.Task
	for _, to := range all {
		tasks = append(tasks, dispatcher.NewTask("send", to))
	}
	return errors.Join(p.PublishBatch(ctx, tasks)...)
}

func TestCampaignKeepsTheOrder(t *testing.T) {
	kit := dispatchertest.New()
	if err := campaign(t.Context(), kit.NewServer(t, nil), "ann", "bob"); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, task := range kit.Published("send") {
		var to string
		if err := task.DecodeArgs(&to); err != nil {
			t.Fatal(err)
		}
		got = append(got, to)
	}
	if text := strings.Join(got, " "); text != "ann bob" {
		t.Errorf("sent to %s", text)
	}
}

// mailer is the program's worker.
func mailer(server *dispatcher.Server, send func(to string) error) error {
	worker, err := server.NewWorker(
		&dispatcher.WorkerConfig{
			Name: "mailer", Queue: "test", BindingKeys: []string{"test"},
			Retry: &dispatcher.RetryPolicy{MaxAttempts: 10, InitialInterval: time.Minute},
		},
		map[string]dispatcher.TaskConfig{"send": {Function: send, Timeout: 30 * time.Second}})
	if err != nil {
		return err
	}
	return worker.Start(server)
}

func TestMailIsTriedAgainWhileTheProviderIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := time.Now().Add(3 * time.Hour)
		send := func(to string) error {
			if to == "nobody" {
				return dispatcher.Permanent(errors.New("no such address"))
			}
			if time.Now().Before(up) {
				return errors.New("the provider is down")
			}
			return nil
		}
		kit := dispatchertest.New()
		server := kit.NewServer(t, nil)
		if err := mailer(server, send); err != nil {
			t.Fatal(err)
		}
		for _, to := range []string{"ann@example.org", "nobody"} {
			if err := server.Publish(dispatcher.NewTask("send", to)); err != nil {
				t.Fatal(err)
			}
		}

		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		result, err := kit.RunUntilIdle(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(result.Succeeded) != 1 || len(result.DeadLetters) != 1 || time.Now().Before(up) {
			t.Fatal(result)
		}
		if dead := result.DeadLetters[0]; dead.Reason != dispatcher.ReasonPermanent || dead.Error != "no such address" {
			t.Error(result)
		}
	})
}

// remind is a task function. It goes by what it knows of its task.
func remind(ctx context.Context, to string) error {
	task, _ := dispatcher.TaskFromContext(ctx)
	if limit, _ := task.Headers["attempts"].(int64); task.Attempt > int(limit) {
		return dispatcher.Discard(errors.New("nobody waits for this any more"))
	}
	return nil
}

func TestRemindGivesUp(t *testing.T) {
	headers := map[string]any{"attempts": 3}
	ctx := dispatchertest.Context(t, dispatcher.TaskInfo{Name: "remind", Attempt: 3, Headers: headers})
	if err := remind(ctx, "ann@example.org"); err != nil {
		t.Error(err)
	}
	ctx = dispatchertest.Context(t, dispatcher.TaskInfo{Name: "remind", Attempt: 4, Headers: headers})
	if err := remind(ctx, "ann@example.org"); err == nil {
		t.Error("it goes on")
	}
}

func TestDecodeABody(t *testing.T) {
	task, err := dispatcher.DecodeTask([]byte(`{"uuid":"u-1","name":"send","args":[{"type":"string","value":"ann"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	var to string
	if err := task.DecodeArgs(&to); err != nil || task.Name != "send" || to != "ann" {
		t.Errorf("%+v to %q, %v", task, to, err)
	}
}

func TestWelcomeWhileDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kit := dispatchertest.New()
		cfg := kit.Config(nil)
		chaos := brokertest.NewChaos(cfg.Broker, nil)
		cfg.Broker = chaos
		server, _, err := dispatcher.NewServer(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()

		chaos.FailOpen(errors.New("down"))
		chaos.Kill()
		if err := welcome(server, "ann@example.org"); !errors.Is(err, dispatcher.ErrNotSent) {
			t.Error(err)
		}
		kit.RequireNotPublished(t)
	})
}
