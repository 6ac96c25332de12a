package dispatchertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// Result describes what happened until the Kit was idle, and what is left. An attempt is one call of a task function.
type Result struct {
	// Succeeded and Failed are the attempts that ended since the last RunUntilIdle, in the order in which they ended.
	// Succeeded holds those whose function returned without an error, Failed all others. Verdict is the fate of the
	// task, and Err is the error that the function returned.
	Succeeded, Failed []dispatcher.FinishEvent
	// DeadLetters are all dead letters that are there now, by queue and oldest first, including those of tasks that
	// were never called.
	DeadLetters []dispatcher.DeadLetter
	// Waiting counts, by queue, the tasks in queues from which no started worker takes. nil = none.
	Waiting map[string]int
}

// RunUntilIdle waits until the started workers have nothing left to do: no task is queued for them, running, or
// delayed. Then only dead letters and tasks that nobody takes are left. It waits for follow-up tasks and retries as
// well. It starts no worker and leaves no goroutine. It does not know about tasks in an outbox, nor about goroutines
// that are about to publish.
//
// If ctx ends first, the error Is ctx's and lists what is left to do, and Result holds what happened so far. Give ctx a
// deadline: a task that never returns or is retried for ever keeps the Kit busy, also inside testing/synctest, where a
// day passes in a moment. Outside of it, delays and pauses between attempts take their time. More than 10,000 dead
// letters of one queue are an error, and Result holds only the first of them.
//
// Call it from one goroutine at a time: each attempt is in one Result only.
func (k *Kit) RunUntilIdle(ctx context.Context) (Result, error) {
	ended := k.waitIdle(ctx)
	k.mu.Lock()
	finished := k.finished
	k.finished = nil
	k.mu.Unlock()
	var r Result
	for _, e := range finished {
		if e.Err == nil {
			r.Succeeded = append(r.Succeeded, e)
		} else {
			r.Failed = append(r.Failed, e)
		}
	}
	content := k.broker.Content()
	for queue, info := range content.Queues {
		if !isDead(queue) && info.Ready > 0 && !k.serves(content, queue) {
			if r.Waiting == nil {
				r.Waiting = make(map[string]int)
			}
			r.Waiting[queue] = info.Ready
		}
	}
	var err error
	r.DeadLetters, err = k.deadLetters(content)
	return r, errors.Join(ended, err)
}

// waitIdle returns nil once nothing is left to do.
func (k *Kit) waitIdle(ctx context.Context) error {
	for {
		// Both before looking, so that no change is missed.
		emptied, stopped := k.broker.Emptied(), k.nextStop()
		if k.left(k.broker.Content()) == "" {
			return nil
		}
		select {
		case <-emptied:
		case <-stopped:
		case <-ctx.Done():
			if left := k.left(k.broker.Content()); left != "" {
				return fmt.Errorf("run until idle: not done: %s: %w", left, ctx.Err())
			}
			return nil // idle at the same moment
		}
	}
}

// left describes what is left to do; "" = nothing.
func (k *Kit) left(c memory.Content) string {
	var parts []string
	for _, queue := range slices.Sorted(maps.Keys(c.Queues)) {
		info := c.Queues[queue]
		if !isDead(queue) && info.Ready+info.Unsettled > 0 && k.serves(c, queue) {
			parts = append(parts, fmt.Sprintf("queue %q: %d waiting, %d with a worker", queue, info.Ready, info.Unsettled))
		}
	}
	if c.Delayed > 0 {
		parts = append(parts, fmt.Sprintf("delayed: %d", c.Delayed))
	}
	return strings.Join(parts, "; ")
}

// serves reports whether a worker takes from queue, or will again once it is reconnected. The workers of a queue also
// take its suspects.
func (k *Kit) serves(c memory.Content, queue string) bool {
	queue = broker.Owner(queue)
	if c.Queues[queue].Consumers > 0 {
		return true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for worker := range k.serving {
		if worker.Queue == queue {
			return true
		}
	}
	return false
}

// nextStop returns a channel that is closed when a worker stops.
func (k *Kit) nextStop() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped == nil {
		k.stopped = make(chan struct{})
	}
	return k.stopped
}

func isDead(queue string) bool {
	return queue == broker.Undeliverable || strings.HasSuffix(queue, broker.DeadSuffix)
}

// deadLetters reads all dead letters as a program does: through a server of its own, which it closes again.
func (k *Kit) deadLetters(c memory.Content) ([]dispatcher.DeadLetter, error) {
	if c.Dead == 0 {
		return nil, nil
	}
	ctx := context.Background() // the caller's may have ended, and nothing here waits
	server, _, err := dispatcher.NewServerContext(ctx, &dispatcher.ServerConfig{
		Broker: k.broker, Exchange: "dispatchertest", DefaultRoutingKey: "none", Logger: new(testLog),
	})
	if err != nil {
		return nil, err
	}
	defer server.Close()
	var all []dispatcher.DeadLetter
	for _, queue := range slices.Sorted(maps.Keys(c.Queues)) {
		if !isDead(queue) || c.Queues[queue].Ready == 0 {
			continue
		}
		letters := server.DeadLetters(strings.TrimSuffix(queue, broker.DeadSuffix))
		for page := (dispatcher.Page{Limit: maxPage}); ; page.Skip += maxPage {
			some, err := letters.List(ctx, dispatcher.DeadLetterFilter{}, page)
			if err != nil {
				return all, err
			}
			if all = append(all, some...); len(some) < maxPage {
				break
			}
		}
	}
	return all, nil
}

const maxPage = 1000 // of DeadLetters.List

// String describes what happened and what is left, for the message of a failing test.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "attempts: %d succeeded, %d failed; dead letters: %d",
		len(r.Succeeded), len(r.Failed), len(r.DeadLetters))
	for _, e := range r.Failed {
		fmt.Fprintf(&b, "\n\tfailed: task %q (%s), attempt %d, then %s: %v",
			e.Task.Name, e.Task.UUID, e.Task.Attempt, e.Verdict, e.Err)
	}
	for _, l := range r.DeadLetters {
		fmt.Fprintf(&b, "\n\tdead letter: task %q (%s) of queue %q, %s: %s", l.Name, l.UUID, l.Queue, l.Reason, l.Error)
	}
	for _, queue := range slices.Sorted(maps.Keys(r.Waiting)) {
		fmt.Fprintf(&b, "\n\twaiting in queue %q, which no started worker consumes: %d", queue, r.Waiting[queue])
	}
	return b.String()
}
