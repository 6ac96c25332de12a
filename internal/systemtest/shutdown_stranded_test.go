package systemtest_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// sharing starts a server on b. The caller must close it.
func sharing(t *testing.T, b broker.Broker, edit ...func(*dispatcher.ServerConfig)) (*dispatcher.Server, *recorder) {
	t.Helper()
	log := &recorder{}
	cfg := dispatcher.ServerConfig{Broker: b, Exchange: "jobs", DefaultRoutingKey: "jobs", Logger: log, InitQueues: []dispatcher.Queue{{Name: "jobs", BindingKeys: []string{"jobs"}}}}
	for _, f := range edit {
		f(&cfg)
	}
	s, _, err := dispatcher.NewServer(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, log
}

// publishThree publishes two tasks for now and one for later.
func publishThree(t *testing.T, s *dispatcher.Server) {
	t.Helper()
	for _, delay := range []time.Duration{0, 0, time.Hour} {
		task := dispatcher.NewTask("work")
		task.Delay = delay
		if err := s.Publish(task); err != nil {
			t.Fatal(err)
		}
	}
}

const stranded = "in the memory of this process"

func TestCloseLogsOnceWhatTheProcessTakesWithIt(t *testing.T) {
	t.Parallel()
	s, log := withADeadLetter(t)
	publishThree(t, s)
	s.Close()
	s.Close()
	const want = "warn: tasks are left in the memory of this process and will be lost with it tasks=3 dead_letters=1"
	if got := log.String(); strings.Count(got, stranded) != 1 || !strings.Contains(got, want) {
		t.Errorf("the log is\n%s\nwant exactly once %q", got, want)
	}
}

func TestCloseLogsThatOnlyDeadLettersAreLeft(t *testing.T) {
	t.Parallel()
	s, log := withADeadLetter(t)
	s.Close()
	const want = "warn: dead letters are left in the memory of this process and will be lost with it dead_letters=1"
	if got := log.String(); strings.Count(got, stranded) != 1 || !strings.Contains(got, want) {
		t.Errorf("the log is\n%s\nwant exactly once %q", got, want)
	}
}

// withADeadLetter starts a server whose broker holds one dead letter and nothing else.
func withADeadLetter(t *testing.T) (*dispatcher.Server, *recorder) {
	t.Helper()
	dead := make(chan dispatcher.DeadLetterEvent, 1)
	s, log := sharing(t, memory.New(), func(c *dispatcher.ServerConfig) {
		c.Hooks.DeadLettered = func(e dispatcher.DeadLetterEvent) { dead <- e }
	})
	w, err := s.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "jobs"}, tasks{"work": fn(func() error { return errors.New("no") })})
	if err == nil {
		err = w.Start(s)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(dispatcher.NewTask("work")); err != nil {
		t.Fatal(err)
	}
	wait(t, dead, "dead letter")
	w.Close()
	return s, log
}

func TestCloseLogsNothingWhenNothingIsLeft(t *testing.T) {
	t.Parallel()
	b := memory.New()
	s, log := sharing(t, b)
	w, err := s.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "jobs"}, tasks{"work": fn(func() {})})
	if err == nil {
		err = w.Start(s)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := s.Publish(dispatcher.NewTask("work")); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	s.Close()
	if got := log.String(); strings.Contains(got, stranded) || s.Stats().Succeeded != 100 {
		t.Errorf("%d tasks succeeded, and the log is\n%s", s.Stats().Succeeded, got)
	}
}

// Tasks that another server takes are not stranded, so Close does not log them.
func TestCloseLogsOnlyWhatNobodyElseTakes(t *testing.T) {
	t.Parallel()
	b := memory.New()
	publisher, firstLog := sharing(t, b)
	consumer, lastLog := sharing(t, b)
	proceed, ran := make(chan struct{}), make(chan struct{})
	w, err := consumer.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "jobs", Limit: 1}, tasks{"work": fn(func() { <-proceed; ran <- struct{}{} })})
	if err == nil {
		err = w.Start(consumer)
	}
	if err != nil {
		t.Fatal(err)
	}
	publishThree(t, publisher)
	publisher.Close()
	if got := firstLog.String(); strings.Contains(got, stranded) {
		t.Errorf("the first server's log is\n%s", got)
	}
	close(proceed)
	for range 2 {
		wait(t, ran, "task")
	}
	consumer.Close()
	if got := lastLog.String(); !strings.Contains(got, "tasks=1 dead_letters=0") {
		t.Errorf("the last server's log is\n%s", got)
	}
}
