package dispatchertest

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// recorder is the broker that servers see: the Kit's, with every publish recorded. It does not implement
// [broker.Volatile], since nobody misses the messages that a test leaves in its broker.
type recorder struct{ kit *Kit }

func (r recorder) Open(ctx context.Context) (broker.Session, error) {
	s, err := r.kit.broker.Open(ctx)
	if err != nil {
		return nil, err
	}
	return session{s, r.kit}, nil
}

type session struct {
	broker.Session
	kit *Kit
}

// record is a message that was handed to the broker.
type record struct {
	broker.Message
	accepted bool // guarded by Kit.mu, as records is
}

// Publish implements [broker.Session]. It makes the records before the broker has the messages: a worker may run one of
// them, and publish another, before this call returns.
func (s session) Publish(ctx context.Context, msgs []broker.Message, done func(i int, err error)) {
	records := make([]*record, len(msgs))
	for i, m := range msgs {
		records[i] = &record{Message: m}
	}
	k := s.kit
	k.mu.Lock()
	k.records = append(k.records, records...)
	k.mu.Unlock()
	s.Session.Publish(ctx, msgs, func(i int, err error) {
		k.mu.Lock()
		records[i].accepted = err == nil
		k.mu.Unlock()
		done(i, err)
	})
}

// Published returns the tasks with one of these names that were published and accepted, or all such tasks if there are
// no names. They come in the order in which they were published, including those that have run since.
//
// The tasks are read from the messages that were sent. So a task in the outbox is among them once it was sent. Refused
// tasks and replays of dead letters are not. The values of Args are JSON: use [dispatcher.Task.DecodeArgs]. Headers are
// the publisher's own, as a task function finds them: integers are int64. A delayed task has both NotBefore and Delay
// set, Delay counted from the publish. The tasks are copies.
func (k *Kit) Published(names ...string) []*dispatcher.Task {
	k.mu.Lock()
	defer k.mu.Unlock()
	var tasks []*dispatcher.Task
	for _, r := range k.records {
		if !r.accepted || r.Exchange == "" { // a replay goes straight to its queue
			continue
		}
		if task := r.task(); len(names) == 0 || slices.Contains(names, task.Name) {
			tasks = append(tasks, task)
		}
	}
	return tasks
}

// Header names from docs/adr/0007-failure-engine.md.
const (
	headerPrefix    = "x-dispatcher-"
	headerExpiresAt = headerPrefix + "expires-at"
)

// task decodes the message.
func (r *record) task() *dispatcher.Task {
	letter := dispatcher.DeadLetter{
		UUID:       r.ID,
		Name:       r.Type,
		RoutingKey: r.RoutingKey,
		Headers:    r.publishersHeaders(),
		Body:       r.Body,
	}
	task, err := letter.Task()
	if err != nil { // not published by a Server
		task = &dispatcher.Task{UUID: r.ID, Name: r.Type, RoutingKey: r.RoutingKey, Headers: letter.Headers}
	}
	if !r.NotBefore.IsZero() {
		// Timestamp is the same reading of the clock that Publish added Task.Delay to.
		task.NotBefore, task.Delay = r.NotBefore, r.NotBefore.Sub(r.Timestamp)
	}
	if text, ok := r.Headers[headerExpiresAt].(string); ok {
		task.ExpiresAt, _ = time.Parse(time.RFC3339Nano, text)
	}
	return task
}

func (r *record) publishersHeaders() map[string]any {
	var own map[string]any
	for name, v := range r.Headers {
		if !strings.HasPrefix(name, headerPrefix) {
			if own == nil {
				own = make(map[string]any)
			}
			own[name] = v
		}
	}
	return own
}
