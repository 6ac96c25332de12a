package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// A flaky function gets three attempts, with growing pauses in between.
func ExampleRetryPolicy() {
	server := newExample()
	defer server.Close()
	done := make(chan struct{})
	send := func(ctx context.Context, to string) error {
		task, _ := dispatcher.TaskFromContext(ctx)
		if task.Attempt < 3 {
			fmt.Println("attempt", task.Attempt, "fails")
			return errors.New("connection refused")
		}
		fmt.Println("attempt", task.Attempt, "sends to", to)
		close(done)
		return nil
	}
	run(server, map[string]dispatcher.TaskConfig{"send": {
		Function: send,
		Retry:    &dispatcher.RetryPolicy{MaxAttempts: 3, InitialInterval: 10 * time.Millisecond},
	}})

	publish(server, dispatcher.NewTask("send", "ann@example.org"))
	<-done
	// Output:
	// attempt 1 fails
	// attempt 2 fails
	// attempt 3 sends to ann@example.org
}

// The sender decides how often a task is tried. Its wish travels in a header. The worker has no RetryPolicy, and a
// middleware applies the wish.
func ExampleRetryAfter_senderDecides() {
	dead := make(chan string, 1)
	server := newExampleWithHooks(dispatcher.Hooks{DeadLettered: func(e dispatcher.DeadLetterEvent) { dead <- e.Reason }})
	defer server.Close()
	bySender := func(next dispatcher.TaskFunc) dispatcher.TaskFunc {
		return func(ctx context.Context) error {
			info, _ := dispatcher.TaskFromContext(ctx)
			if ms, ok := info.Headers["timeout_ms"].(int64); ok {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Duration(ms)*time.Millisecond)
				defer cancel()
			}
			err := next(ctx)
			retries, _ := info.Headers["max_retry"].(int64)
			if err == nil || int64(info.Attempt) > retries {
				return err // without a policy, an error is a dead letter
			}
			return dispatcher.RetryAfter(time.Duration(info.Attempt)*time.Millisecond, err) // Permanent and Discard in err still count
		}
	}
	hang := func(ctx context.Context) error {
		info, _ := dispatcher.TaskFromContext(ctx)
		<-ctx.Done()
		fmt.Println("attempt", info.Attempt, "ends:", ctx.Err())
		return ctx.Err()
	}
	run(server, map[string]dispatcher.TaskConfig{"hang": {Function: hang, Middleware: []dispatcher.Middleware{bySender}}})

	task := dispatcher.NewTask("hang")
	task.Headers = map[string]any{"max_retry": 2, "timeout_ms": 1}
	publish(server, task)
	fmt.Println("dead letter:", <-dead)
	// Output:
	// attempt 1 ends: context deadline exceeded
	// attempt 2 ends: context deadline exceeded
	// attempt 3 ends: context deadline exceeded
	// dead letter: failed
}

// An error that another attempt cannot cure makes the task a dead letter at once, whatever the policy says.
func ExamplePermanent() {
	dead := make(chan dispatcher.DeadLetterEvent)
	server := newExampleWithHooks(dispatcher.Hooks{DeadLettered: func(e dispatcher.DeadLetterEvent) { dead <- e }})
	defer server.Close()
	run(server, map[string]dispatcher.TaskConfig{"send": {
		Function: func(to string) error { return dispatcher.Permanent(fmt.Errorf("no such mailbox: %s", to)) },
		Retry:    &dispatcher.RetryPolicy{MaxAttempts: 10},
	}})

	publish(server, dispatcher.NewTask("send", "nobody@example.org"))
	e := <-dead
	fmt.Printf("%s at attempt %d: %v\n", e.Reason, e.Task.Attempt, e.Err)
	// Output: permanent at attempt 1: no such mailbox: nobody@example.org
}

// A task that is no longer of use is neither tried again nor kept.
func ExampleDiscard() {
	ended := make(chan dispatcher.FinishEvent)
	server := newExampleWithHooks(dispatcher.Hooks{Finished: func(e dispatcher.FinishEvent) { ended <- e }})
	run(server, map[string]dispatcher.TaskConfig{"send": {
		Function: func(string) error { return dispatcher.Discard(errors.New("has unsubscribed")) },
		Retry:    &dispatcher.RetryPolicy{MaxAttempts: 10},
	}})

	publish(server, dispatcher.NewTask("send", "ann@example.org"))
	e := <-ended
	fmt.Printf("%s: %v\n", e.Verdict, e.Err)
	server.Close() // returns when the verdict has been carried out
	fmt.Println("discarded:", server.Stats().Discarded, "dead letters:", server.Stats().DeadLettered)
	// Output:
	// discard: has unsubscribed
	// discarded: 1 dead letters: 0
}

// The other side says when to ask again. RetryAfter needs no policy. With a policy, MaxAttempts still applies.
func ExampleRetryAfter() {
	server := newExample()
	defer server.Close()
	var asked time.Time // never used by two attempts at once
	done := make(chan struct{})
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func(ctx context.Context) error {
		const pause = 20 * time.Millisecond // from a Retry-After header, for example
		if task, _ := dispatcher.TaskFromContext(ctx); task.Attempt == 1 {
			asked = time.Now()
			return dispatcher.RetryAfter(pause, errors.New("too many requests"))
		}
		fmt.Println("not before it is due:", time.Since(asked) >= pause)
		close(done)
		return nil
	}}})

	publish(server, dispatcher.NewTask("send"))
	<-done
	// Output: not before it is due: true
}
