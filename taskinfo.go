package dispatcher

import (
	"context"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/engine"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/taskcontext"
)

// TaskInfo describes the task that a task function runs. Worker and Queue describe the worker. All other fields come
// with the message and are as trustworthy as the programs that may write to the queue.
type TaskInfo struct {
	UUID       string
	Name       string
	Queue      string // the worker's queue
	RoutingKey string // the key it was published with
	Worker     string // name of the worker
	// The publisher's own; in events also the library's, x-dispatcher-…. Slices and maps inside are read only.
	// nil = none. Integers are int64.
	Headers     map[string]any
	Attempt     int       // number of this attempt, from 1
	PublishedAt time.Time // by the publisher's clock, whole seconds on RabbitMQ; zero if unknown
	Redelivered bool      // the task was handed out before, to this worker or another, and may have run
}

// TaskFromContext returns the task whose function was called with ctx, or with a context that ctx is made from. It
// reports false outside of tasks.
func TaskFromContext(ctx context.Context) (TaskInfo, bool) {
	info, ok := ctx.Value(taskcontext.Key{}).(*TaskInfo)
	if !ok {
		return TaskInfo{}, false
	}
	out := *info
	out.Headers = nil // copied: the map is the broker's own, and it may hand it out again
	for name, v := range info.Headers {
		if !record.IsOwn(name) {
			if out.Headers == nil {
				out.Headers = make(map[string]any, len(info.Headers))
			}
			out.Headers[name] = v
		}
	}
	return out, true
}

// infoOf describes the task of a call.
func infoOf(c *engine.Call, worker string) *TaskInfo {
	d := &c.Delivery
	return &TaskInfo{
		UUID: c.ID, Name: c.Name, Queue: broker.Owner(d.Queue), RoutingKey: c.RoutingKey(), Worker: worker,
		Headers: d.Headers, Attempt: c.Number(), PublishedAt: d.Timestamp, Redelivered: c.HandedOut(),
	}
}
