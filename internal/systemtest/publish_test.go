package systemtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

func TestPublishFillsTheCallersTaskAndTheMessage(t *testing.T) {
	t.Parallel()
	r := newRig(t, withQueue)
	task := dispatcher.NewTask("mail", "ann", int64(7))
	task.Headers = map[string]interface{}{"tenant": "blue", "n": 3}
	if err := r.server.Publish(task); err != nil {
		t.Fatal(err)
	}
	if len(task.UUID) != 36 || task.RoutingKey != "jobs" {
		t.Errorf("Publish did not fill in the uuid %q or the key %q", task.UUID, task.RoutingKey)
	}
	ds, err := r.session().TryGet(t.Context(), "jobs", 2)
	if err != nil || len(ds) != 1 {
		t.Fatalf("%d messages, %v", len(ds), err)
	}
	d := ds[0]
	if d.ID != task.UUID || d.Type != "mail" || d.ContentType != "application/json" || d.Timestamp.IsZero() ||
		d.Headers["tenant"] != "blue" || d.Headers["n"] != int64(3) {
		t.Errorf("message %+v", d.Message)
	}
	var body dispatcher.Task
	if err := json.Unmarshal(d.Body, &body); err != nil || body.UUID != task.UUID || body.Name != "mail" || len(body.Args) != 2 {
		t.Errorf("body %s: %v", d.Body, err)
	}
}

func TestPublishKeepsAGivenIdentity(t *testing.T) {
	t.Parallel()
	r := newRig(t, withQueue)
	task := &dispatcher.Task{UUID: "mine", Name: "n", RoutingKey: "elsewhere"}
	if err := r.server.Publish(task); !errors.Is(err, dispatcher.ErrUnroutable) {
		t.Errorf("got %v, want ErrUnroutable: no queue is bound to that key", err)
	}
	if task.UUID != "mine" || task.RoutingKey != "elsewhere" {
		t.Errorf("task changed: %+v", task)
	}
}

func TestPublishRefusesWhatCannotTravel(t *testing.T) {
	t.Parallel()
	r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) { c.MaxBodyBytes = 1000 })
	long := strings.Repeat("k", 256)
	for name, c := range map[string]struct {
		task *dispatcher.Task
		is   error
		text string
	}{
		"nil task":       {nil, dispatcher.ErrRejected, "task is nil"},
		"no name":        {&dispatcher.Task{}, dispatcher.ErrTaskName, "Task name was not passed"},
		"long name":      {&dispatcher.Task{Name: long}, dispatcher.ErrRejected, "Task.Name is 256 bytes"},
		"long uuid":      {&dispatcher.Task{Name: "n", UUID: long}, dispatcher.ErrRejected, "Task.UUID is 256 bytes"},
		"long key":       {&dispatcher.Task{Name: "n", RoutingKey: long}, dispatcher.ErrRejected, "Task.RoutingKey is 256 bytes"},
		"header type":    {&dispatcher.Task{Name: "n", Headers: map[string]interface{}{"x": make(chan int)}}, dispatcher.ErrRejected, `header "x"`},
		"header integer": {&dispatcher.Task{Name: "n", Headers: map[string]interface{}{"x": uint64(math.MaxUint64)}}, dispatcher.ErrRejected, `header "x"`},
		"header CC":      {&dispatcher.Task{Name: "n", Headers: map[string]interface{}{"CC": []string{"a"}}}, dispatcher.ErrRejected, "CC"},
		"header of ours": {&dispatcher.Task{Name: "n", Headers: map[string]interface{}{"x-dispatcher-attempt": 9}}, dispatcher.ErrRejected, "x-dispatcher-"},
		"long header":    {&dispatcher.Task{Name: "n", Headers: map[string]interface{}{long: 1}}, dispatcher.ErrRejected, "255"},
		"large headers":  {&dispatcher.Task{Name: "n", Headers: map[string]interface{}{"x": [][]byte{make([]byte, 40_000), make([]byte, 40_000)}}}, dispatcher.ErrTooLarge, "headers"},
		"key bytes":      {&dispatcher.Task{Name: "n", RoutingKey: "k\xff"}, dispatcher.ErrRejected, "Task.RoutingKey"},
		"opaque struct":  {dispatcher.NewTask("n", errors.New("would travel as {}")), dispatcher.ErrRejected, "argument 0"},
		"large body":     {dispatcher.NewTask("n", strings.Repeat("x", 1000)), dispatcher.ErrTooLarge, "the maximum is 1000"},
		"chan argument":  {dispatcher.NewTask("n", 1, make(chan int)), dispatcher.ErrRejected, "argument 1"},
		"overflow":       {&dispatcher.Task{Name: "n", Args: []dispatcher.TaskArgument{{Type: "int8", Value: 300}}}, dispatcher.ErrRejected, "argument 0: want int8, got 300"},
		"unknown type":   {&dispatcher.Task{Name: "n", Args: []dispatcher.TaskArgument{{Type: "complex128", Value: 1}}}, dispatcher.ErrRejected, "argument 0"},
		"not a number":   {dispatcher.NewTask("n", math.NaN()), dispatcher.ErrRejected, "argument 0"},
	} {
		t.Run(name, func(t *testing.T) {
			err := r.server.Publish(c.task)
			if !errors.Is(err, c.is) || !errors.Is(err, dispatcher.ErrRejected) {
				t.Fatalf("got %v, want %v", err, c.is)
			}
			if !strings.Contains(err.Error(), c.text) {
				t.Errorf("%q does not say %q", err, c.text)
			}
		})
	}
	if n := r.inspect("jobs").Ready; n != 0 {
		t.Errorf("%d messages were sent, want none", n)
	}
	if s := r.server.Stats(); s.Rejected != 18 || s.Published != 0 {
		t.Errorf("stats %+v, want 18 rejected", s)
	}
}

func TestPublishFailsAtOnceWhileDisconnected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		r.chaos.FailOpen(errors.New("down"))
		r.chaos.Kill()
		synctest.Wait()
		began := time.Now()
		err := r.server.Publish(dispatcher.NewTask("n"))
		if !errors.Is(err, dispatcher.ErrNotSent) || err.Error() != "Service is disconnected" || time.Since(began) != 0 {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
		if _, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "q"}, nil); !errors.Is(err, dispatcher.ErrDisconnected) {
			t.Errorf("NewWorker: %v, want ErrDisconnected", err)
		}

		// PublishContext and PublishBatch wait for a connection until their context ends.
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err = r.server.PublishContext(ctx, dispatcher.NewTask("n"))
		if !errors.Is(err, dispatcher.ErrNotSent) || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 5*time.Second {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
		time.AfterFunc(10*time.Second, func() { r.chaos.FailOpen(nil) })
		if errs := r.server.PublishBatch(t.Context(), []*dispatcher.Task{dispatcher.NewTask("n"), dispatcher.NewTask("n")}); errs != nil {
			t.Errorf("got %v", errs)
		}
		if n := r.inspect("jobs").Ready; n != 2 {
			t.Errorf("%d messages, want 2", n)
		}
	})
}

func TestPublishIsBoundedWhenTheBrokerDoesNotAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		for name, c := range map[string]struct {
			set func(bool)
			is  error
		}{
			"blocked":     {r.chaos.Block, dispatcher.ErrNotSent},
			"unconfirmed": {r.chaos.HoldConfirms, dispatcher.ErrUnconfirmed},
		} {
			c.set(true)
			if h := r.server.Health(t.Context()); (h.Blocked != "") != (name == "blocked") || h.OK() != (h.Blocked == "") {
				t.Errorf("%s: health %+v", name, h)
			}
			began := time.Now()
			err := r.server.Publish(dispatcher.NewTask("n"))
			if !errors.Is(err, c.is) || time.Since(began) != 30*time.Second {
				t.Errorf("%s: got %v after %v, want %v after 30s", name, err, time.Since(began), c.is)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := r.server.PublishContext(ctx, dispatcher.NewTask("n")); !errors.Is(err, c.is) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s, own context: %v", name, err)
			}
			cancel()
			c.set(false)
		}
	})
}

func TestAPublishInFlightWhenTheConnectionDiesIsUnconfirmedAndNotRepeated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		r.chaos.HoldConfirms(true)
		result := make(chan error, 1)
		go func() { result <- r.server.PublishContext(t.Context(), dispatcher.NewTask("n")) }()
		synctest.Wait()
		r.chaos.HoldConfirms(true)
		r.chaos.Kill()
		if err := <-result; !errors.Is(err, dispatcher.ErrUnconfirmed) || errors.Is(err, dispatcher.ErrNotSent) {
			t.Errorf("got %v, want ErrUnconfirmed and nothing else", err)
		}
		r.chaos.HoldConfirms(false)
		if n := r.inspect("jobs").Ready; n != 1 {
			t.Errorf("%d messages, want only the one that was sent", n)
		}
	})
}

// The connection dies while the broker blocks. A caller that waits publishes on the next one.
func TestAPublishHeldAtTheGateGoesToTheNextConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		r.chaos.Block(true)
		waits, doesNot := make(chan error, 1), make(chan error, 1)
		go func() { waits <- r.server.PublishContext(t.Context(), dispatcher.NewTask("waits")) }()
		go func() { doesNot <- r.server.Publish(dispatcher.NewTask("does not")) }()
		synctest.Wait()
		r.chaos.Kill()
		outcome(t, "Publish", <-doesNot, dispatcher.ErrNotSent)
		r.chaos.Block(false)
		if err := <-waits; err != nil {
			t.Errorf("PublishContext: %v", err)
		}
		if ids := r.inspect("jobs").Ready; ids != 1 {
			t.Errorf("%d messages in the queue, want that of PublishContext", ids)
		}
	})
}

func TestPublishBatchAnswersEachTaskInItsPlace(t *testing.T) {
	t.Parallel()
	r := newRig(t, withQueue)
	batch := []*dispatcher.Task{
		dispatcher.NewTask("a"), nil, dispatcher.NewTask(""), {Name: "b", RoutingKey: "nowhere"}, dispatcher.NewTask("c", make(chan int)), dispatcher.NewTask("d"),
	}
	errs := r.server.PublishBatch(t.Context(), batch)
	want := []error{nil, dispatcher.ErrRejected, dispatcher.ErrTaskName, dispatcher.ErrUnroutable, dispatcher.ErrRejected, nil}
	if len(errs) != len(want) {
		t.Fatalf("%d errors, want %d", len(errs), len(want))
	}
	for i := range want {
		if !errors.Is(errs[i], want[i]) {
			t.Errorf("task %d: got %v, want %v", i, errs[i], want[i])
		}
	}
	ds, err := r.session().TryGet(t.Context(), "jobs", 10)
	if err != nil || len(ds) != 2 || ds[0].Type != "a" || ds[1].Type != "d" {
		t.Errorf("queue holds %d messages, %v; want a and d", len(ds), err)
	}
	if errs := r.server.PublishBatch(t.Context(), nil); errs != nil {
		t.Errorf("empty batch: %v", errs)
	}
}

func TestPublishAfterCloseIsNotSent(t *testing.T) {
	t.Parallel()
	r := newRig(t, withQueue)
	r.server.Close()
	for name, err := range map[string]error{
		"Publish":        r.server.Publish(dispatcher.NewTask("n")),
		"PublishContext": r.server.PublishContext(t.Context(), dispatcher.NewTask("n")),
		"PublishBatch":   r.server.PublishBatch(t.Context(), []*dispatcher.Task{dispatcher.NewTask("n")})[0],
	} {
		if !errors.Is(err, dispatcher.ErrServerClosed) || !errors.Is(err, dispatcher.ErrNotSent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := r.server.Publish(nil); !errors.Is(err, dispatcher.ErrRejected) {
		t.Errorf("nil task: %v", err)
	}
}

func TestBodyLimitCanBeLifted(t *testing.T) {
	t.Parallel()
	r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) { c.MaxBodyBytes = -1 })
	got := make(chan int, 1)
	r.worker("w", tasks{"big": fn(func(s string) { got <- len(s) })})
	r.publish("big", strings.Repeat("x", 3<<20))
	if n := wait(t, got, "task"); n != 3<<20 {
		t.Errorf("got %d bytes", n)
	}
}

func TestOutcomesAreTheBrokersOwnValues(t *testing.T) {
	t.Parallel()
	if dispatcher.ErrNotSent != broker.ErrNotSent || dispatcher.ErrRejected != broker.ErrRejected || dispatcher.ErrUnconfirmed != broker.ErrUnconfirmed {
		t.Error("the root package must export the broker package's error values, or errors.Is fails between them")
	}
}

func TestAPublishHasOneOutcomeWhateverTheCauseOfItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue)
		for name, c := range map[string]struct {
			set func(bool)
			is  error
		}{
			"unconfirmed":  {r.chaos.HoldConfirms, dispatcher.ErrUnconfirmed},
			"disconnected": {func(on bool) { down(r, on) }, dispatcher.ErrNotSent},
		} {
			c.set(true)
			for _, cause := range []error{dispatcher.ErrDisconnected, dispatcher.ErrUnroutable, dispatcher.ErrUnconfirmed} {
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(time.Second, func() { cancel(cause) })
				err := r.server.PublishContext(ctx, dispatcher.NewTask("n"))
				var outcomes []error
				for _, o := range []error{dispatcher.ErrNotSent, dispatcher.ErrRejected, dispatcher.ErrUnconfirmed} {
					if errors.Is(err, o) {
						outcomes = append(outcomes, o)
					}
				}
				if len(outcomes) != 1 || outcomes[0] != c.is || !errors.Is(err, context.Canceled) {
					t.Errorf("%s, cause %v: %v Is %v", name, cause, err, outcomes)
				}
			}
			c.set(false)
		}
	})
}
