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
)

// Each text names a thing once, and says what to do if that is known.
func TestTextsOfPublishErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) {
			c.ReconnectionRetriesForever, c.ReconnectionRetries, c.MaxBodyBytes = false, 2, 200
			c.PublishTimeout = 1400 * time.Millisecond
		})
		w := r.worker("w", tasks{"n": fn(func() {})})
		w.Close()
		text := func(want string, err error) {
			t.Helper()
			if err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		}
		publish := func(task dispatcher.Task) error {
			task.Name, task.UUID = "n", "u"
			return r.server.Publish(&task)
		}
		const where = `publish task "n" ("u") with key "jobs": `
		text(`publish task "n" ("u") with key "nowhere": exchange "jobs": no queue takes this routing key: `+
			`bind one with ServerConfig.InitQueues or WorkerConfig.BindingKeys`, publish(dispatcher.Task{RoutingKey: "nowhere"}))
		text(where+`rejected: argument 0: want int8, got 300`, publish(dispatcher.Task{Args: []dispatcher.TaskArgument{{"int8", 300}}}))
		text(where+`task is too large: 361 bytes, the most is 200`, publish(dispatcher.Task{Args: dispatcher.Args(strings.Repeat("x", 300))}))
		text(where+`rejected: it is due in 8784h0m1s, the most is 8784h0m0s`, publish(dispatcher.Task{Delay: broker.MaxDelay + time.Second}))

		r.chaos.HoldConfirms(true)
		time.AfterFunc(time.Second, r.chaos.Kill)
		text(where+`the session died: unconfirmed`, publish(dispatcher.Task{}))
		r.chaos.HoldConfirms(false)
		<-time.After(10 * time.Second)
		r.chaos.FailOpen(errors.New("dial: refused"))
		r.chaos.Kill()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		text(where+`Service is disconnected: context deadline exceeded`,
			r.server.PublishContext(ctx, &dispatcher.Task{Name: "n", UUID: "u"}))
		// Whose deadline was it?
		text(where+`Service is disconnected: context deadline exceeded (PublishTimeout of 1.4s)`,
			r.server.PublishContext(t.Context(), &dispatcher.Task{Name: "n", UUID: "u"}))
		<-r.givenUp
		gone := "the connection was given up at " + r.server.Health(t.Context()).Since.UTC().Format(time.RFC3339) + ": connect, after 2 retries: dial: refused"
		text(where+gone, publish(dispatcher.Task{}))
		text(gone, w.Start(r.server))
		_, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "x", Queue: "x"}, nil)
		text(gone, err)
		if !errors.Is(err, dispatcher.ErrServerClosed) || !errors.Is(err, dispatcher.ErrNotSent) {
			t.Errorf("%v is not ErrServerClosed", err)
		}
		r.server.Close()
		text(where+"server is closed", publish(dispatcher.Task{}))
	})
}

func TestTextsOfConnectErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for retries, want := range map[int]string{0: "connect: down", 2: "connect, after 2 retries: down"} {
			chaos, cfg := awayServer(-1)
			chaos.FailOpen(errors.New("down"))
			cfg.ReconnectionRetries, cfg.ReconnectionRetriesForever = retries, false
			if _, _, err := dispatcher.NewServer(&cfg); err == nil || err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
		}
	})
}
