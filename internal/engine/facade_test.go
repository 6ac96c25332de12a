package engine_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
	"github.com/seed-416683c9/dispatcher/internal/engine"
	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// jobs is the smallest facade: each message is a job of raw bytes, and one function runs them all.
type jobs struct {
	run  func(ctx context.Context, body []byte) error
	plan engine.Plan
}

type job struct{ engine.Call }

func (j *jobs) NewCall() *engine.Call {
	c := &job{}
	c.Payload = c
	return &c.Call
}

func (j *jobs) Recycle(*engine.Call) {}

func (j *jobs) Identify(c *engine.Call) error {
	if len(c.Delivery.Body) == 0 {
		return fmt.Errorf("%w: it is empty", fault.ErrMalformed)
	}
	return nil
}

func (j *jobs) Find(c *engine.Call) error {
	if c.Name == "unknown" {
		return fault.ErrUnknownTask
	}
	c.Plan = &j.plan
	return nil
}

func (j *jobs) Bind(*engine.Call) (string, error) { return "", nil }

func (j *jobs) Run(ctx context.Context, c *engine.Call) error { return j.run(ctx, c.Delivery.Body) }

func (j *jobs) Panicked(value any, _ []byte) error { return fmt.Errorf("panic: %v", value) }

// crew is a shift of jobs on the embedded broker.
type crew struct {
	*engine.Shift
	counters engine.Counters
	link     *link.Supervisor
	dead     chan string // the reason of each dead letter
}

func newCrew(t *testing.T, handler *jobs) *crew {
	t.Helper()
	c := &crew{dead: make(chan string, 10)}
	log := slog.New(slog.DiscardHandler)
	c.link = link.New(link.Config{
		Open: memory.New().Open, Prepare: func(context.Context, broker.Session, bool) error { return nil },
		Log: log, Changed: func(link.State, error) {},
	})
	if err := c.link.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var parts []link.Part
	for _, q := range []string{"jobs", "jobs" + broker.DeadSuffix, "jobs" + broker.SuspectsSuffix} {
		parts = append(parts, link.Part{Kind: "queue", Name: q, Topology: broker.Topology{Queues: []broker.QueueSpec{{Name: q}}}})
	}
	c.Shift = engine.New(&engine.Config{
		Name: "crew", Noun: "job", Queue: "jobs", Limit: 2, Prefetch: 6, MaxAbandoned: 2, UnknownMaxAge: -1, PublishTimeout: time.Second,
		Parts: parts, Link: c.link, Declarer: link.NewDeclarer(log, c.link), Shared: engine.NewShared(),
		Handler: handler, Counters: &c.counters, Log: log, Ended: func() {},
		Overlong: func(time.Duration) []string { return nil },
		Observer: engine.Observer{DeadLettered: func(_ *engine.Call, v verdict.Verdict) { c.dead <- v.Reason }},
	})
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Stop(context.Background()), c.link.Stop(context.Background())); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *crew) publish(t *testing.T, msgs ...broker.Message) {
	t.Helper()
	session, err := c.link.Session()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, len(msgs))
	session.Publish(t.Context(), msgs, func(_ int, err error) { done <- err })
	for range msgs {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// The engine does not know tasks. Raw bytes can reach every kind of verdict.
func TestAnotherFacadeRunsJobsOfRawBytes(t *testing.T) {
	t.Parallel()
	ran := make(chan string, 10)
	c := newCrew(t, &jobs{plan: engine.Plan{Retry: &verdict.Policy{MaxAttempts: 2, InitialInterval: time.Millisecond, MaxInterval: time.Millisecond, Multiplier: 1}}, run: func(_ context.Context, body []byte) error {
		ran <- string(body)
		switch body[0] {
		case 0xFF:
			return errors.New("no")
		case 0xFE:
			panic("no")
		}
		return nil
	}})
	job := func(name, body string) broker.Message {
		return broker.Message{RoutingKey: "jobs", ID: name, Type: name, Body: []byte(body)}
	}
	c.publish(t, job("good", "\x00\x01"), job("bad", "\xFF"), job("worse", "\xFE"), job("empty", ""), job("unknown", "x"))
	var reasons []string
	for range 4 {
		reasons = append(reasons, <-c.dead)
	}
	slices.Sort(reasons)
	if want := []string{"failed", "failed", "malformed", "unknown_task"}; !slices.Equal(reasons, want) {
		t.Errorf("dead letters %q, want %q", reasons, want)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := &c.counters
	if n.Received.Load() != 7 || n.Succeeded.Load() != 1 || n.Retried.Load() != 2 || n.DeadLettered.Load() != 4 || len(ran) != 5 {
		t.Errorf("received %d, succeeded %d, retried %d, dead %d; ran %d times", n.Received.Load(), n.Succeeded.Load(), n.Retried.Load(), n.DeadLettered.Load(), len(ran))
	}
	if s := c.State(); s.Running != 0 || s.Stuck != 0 || s.Held != 0 || s.Consuming {
		t.Errorf("state %+v", s)
	}
}

// The headers of a dead letter describe its job, so nobody needs to read the body.
func TestADeadJobKeepsItsBytesAndItsReason(t *testing.T) {
	t.Parallel()
	c := newCrew(t, &jobs{run: func(context.Context, []byte) error { return errors.New("no") }})
	c.publish(t, broker.Message{RoutingKey: "jobs", ID: "1", Type: "raw", Body: []byte{0, 1, 2}, Headers: map[string]any{"k": "v"}})
	<-c.dead
	session, err := c.link.Session()
	if err != nil {
		t.Fatal(err)
	}
	found, err := session.TryGet(t.Context(), "jobs"+broker.DeadSuffix, 1)
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	d := found[0]
	if string(d.Body) != "\x00\x01\x02" || d.ID != "1" || d.Type != "raw" || d.Headers["k"] != "v" || d.Headers[record.HeaderReason] != "failed" || d.Headers[record.HeaderError] != "no" {
		t.Errorf("%+v", d.Message)
	}
	if err := d.Ack(); err != nil {
		t.Error(err)
	}
}
