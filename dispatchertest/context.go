package dispatchertest

import (
	"cmp"
	"context"
	"testing"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/internal/taskcontext"
	"github.com/seed-416683c9/dispatcher/internal/wire"
)

// Context returns a context in which [dispatcher.TaskFromContext] finds info, for calling a task function directly,
// without a server. It is made from the test's context and ends with it. The caller may add a timeout.
//
// If UUID, Name, Queue, RoutingKey or Worker is empty in info, it becomes "test"; an empty Attempt becomes 1. Headers
// are converted to what a worker finds in them: all integers are int64. If Publish would refuse them, the test fails at
// once.
func Context(tb testing.TB, info dispatcher.TaskInfo) context.Context {
	tb.Helper()
	for _, field := range []*string{&info.UUID, &info.Name, &info.Queue, &info.RoutingKey, &info.Worker} {
		*field = cmp.Or(*field, "test")
	}
	info.Attempt = cmp.Or(info.Attempt, 1)
	headers, err := wire.Headers(info.Headers)
	if err != nil {
		tb.Fatalf("dispatchertest: a task cannot have these headers: %v", err)
		return tb.Context()
	}
	info.Headers = headers
	return context.WithValue(tb.Context(), taskcontext.Key{}, &info)
}
