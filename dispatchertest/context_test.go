package dispatchertest_test

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/dispatchertest"
)

// A task function sees the same task when it is called directly as when a worker calls it.
func TestContextIsThatOfAWorker(t *testing.T) {
	t.Parallel()
	headers := map[string]any{"tenant": "blue", "n": 3, "small": int8(1), "f": float32(0.5), "list": []int{1}, "at": time.Unix(1, 0)}
	var seen []dispatcher.TaskInfo
	handler := func(ctx context.Context) error {
		info, ok := dispatcher.TaskFromContext(ctx)
		if !ok {
			t.Error("there is no task in the context")
		}
		info.PublishedAt = time.Time{}
		seen = append(seen, info)
		return nil
	}

	kit := dispatchertest.New()
	server := kit.NewServer(t, nil)
	start(t, server, tasks{"send": {Function: handler}})
	publish(t, server, &dispatcher.Task{UUID: "u-1", Name: "send", Headers: headers})
	idle(t, kit)

	if err := handler(dispatchertest.Context(t, dispatcher.TaskInfo{
		UUID: "u-1", Name: "send", Queue: "test", RoutingKey: "test", Worker: "worker", Headers: headers,
	})); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 2 || !reflect.DeepEqual(seen[0], seen[1]) {
		t.Errorf("from a worker, then directly:\n%#v", seen)
	}
}

func TestContextFillsAndKeeps(t *testing.T) {
	t.Parallel()
	got, _ := dispatcher.TaskFromContext(dispatchertest.Context(t, dispatcher.TaskInfo{}))
	if want := (dispatcher.TaskInfo{UUID: "test", Name: "test", Queue: "test", RoutingKey: "test", Worker: "test", Attempt: 1}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	info := dispatcher.TaskInfo{
		UUID: "u", Name: "n", Queue: "q", RoutingKey: "k", Worker: "w", Headers: map[string]any{"h": "v"}, Attempt: 7,
		PublishedAt: time.Unix(9, 0), Redelivered: true,
	}
	if got, _ := dispatcher.TaskFromContext(dispatchertest.Context(t, info)); !reflect.DeepEqual(got, info) {
		t.Errorf("got %+v", got)
	}
}

func TestContextEndsWithTheTest(t *testing.T) {
	t.Parallel()
	var ctx context.Context
	t.Run("", func(t *testing.T) { ctx = dispatchertest.Context(t, dispatcher.TaskInfo{}) })
	if ctx.Err() == nil {
		t.Error("the context outlives its test")
	}
}

func TestContextRefusesHeadersThatCannotTravel(t *testing.T) {
	t.Parallel()
	fake := &fakeTB{TB: t}
	if ctx := dispatchertest.Context(fake, dispatcher.TaskInfo{Headers: map[string]any{"c": make(chan int)}}); ctx == nil {
		t.Error("Context returned nil")
	}
	if !strings.HasPrefix(fake.failure, `dispatchertest: a task cannot have these headers: header "c": a value of type chan int cannot be sent`) {
		t.Errorf("failure %q", fake.failure)
	}
}
