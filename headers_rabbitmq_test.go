package dispatcher_test

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// What Publish accepts leaves room for all that the library and RabbitMQ add until the end: eleven hops of a delay, retries with
// their log, a dead letter, a replay.
func TestRabbitMQ_TheLargestHeadersGoTheWholeWay(t *testing.T) {
	t.Parallel()
	r := newRabbit(t, func(c *dispatcher.ServerConfig) {
		c.Retry = &dispatcher.RetryPolicy{MaxAttempts: 2, InitialInterval: 50 * time.Millisecond}
	})
	many, nils, deep := map[string]any{}, make([]any, 8000), any("leaf")
	for i := range 8000 {
		many[strconv.Itoa(i)] = nil
	}
	for range 16 {
		deep = []any{deep}
	}
	all := map[string]map[string]any{
		"bytes":    {"h": strings.Repeat("x", 65_536-7)},
		"entries":  many,
		"elements": {"a": nils, "b": nils, "c": nils, "d": nils, "e": nils, "f": nils, "g": nils, "h": nils},
		"deep":     {"h": deep},
	}
	const attempts = 2
	failed := make(chan string, attempts*len(all))
	r.worker(tasks{"n": fn(func(name string) error {
		failed <- name
		return errors.New(strings.Repeat("\"long\" ", 300))
	})}, func(c *dispatcher.WorkerConfig) { c.Name = strings.Repeat("w", 255) })
	for name, headers := range all {
		task := dispatcher.NewTask("n", name)
		task.UUID, task.Headers, task.Delay = name, headers, (1<<7-1)*16*time.Millisecond
		if err := r.server.Publish(task); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	dead := r.server.DeadLetters(r.name)
	for round := range 2 {
		for range attempts * len(all) {
			wait(t, failed, "attempt")
		}
		var letters []dispatcher.DeadLetter
		eventually(t, "all are dead letters", func() bool {
			var err error
			if letters, err = dead.List(t.Context(), dispatcher.DeadLetterFilter{}, dispatcher.Page{}); err != nil {
				t.Fatal(err)
			}
			return len(letters) == len(all)
		})
		for _, l := range letters {
			if !reflect.DeepEqual(l.Headers, all[l.UUID]) || l.Reason != dispatcher.ReasonFailed || len(l.Log) != attempts || strings.Contains(l.Error, "dropped") {
				t.Errorf("round %d, %q: %s, %d headers, %d lines of log, %.100s", round, l.UUID, l.Reason, len(l.Headers), len(l.Log), l.Error)
			}
		}
		if round == 1 {
			break
		}
		if n, err := dead.ReplayAll(t.Context()); n != len(all) || err != nil {
			t.Fatal(n, err)
		}
	}
	if h := r.server.Health(t.Context()); len(h.Unreadable) > 0 {
		t.Error(fmt.Sprint(h.Unreadable))
	}
}
