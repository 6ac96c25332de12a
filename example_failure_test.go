package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// newExampleWithHooks makes a server that tells what happens.
func newExampleWithHooks(hooks dispatcher.Hooks) *dispatcher.Server {
	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
		Broker: memory.New(), Exchange: "app", DefaultRoutingKey: "mail", Logger: quiet, Hooks: hooks,
	})
	if err != nil {
		panic(err)
	}
	return server
}

// publish publishes a task for the examples below.
func publish(server *dispatcher.Server, task *dispatcher.Task) {
	if err := server.Publish(task); err != nil {
		panic(err)
	}
}

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

// The sender decides how often a task is tried: its wish travels in a header, the worker has no RetryPolicy, and a middleware is the policy.
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

// What trying again cannot cure is a dead letter at once, whatever the policy says.
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

// A task that is of no use any more is neither tried again nor kept.
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
	server.Close() // the verdict has been carried out
	fmt.Println("discarded:", server.Stats().Discarded, "dead letters:", server.Stats().DeadLettered)
	// Output:
	// discard: has unsubscribed
	// discarded: 1 dead letters: 0
}

// The other side says when it wants to be asked again. That needs no policy; with one, its MaxAttempts still holds.
func ExampleRetryAfter() {
	server := newExample()
	defer server.Close()
	var asked time.Time // never by two attempts at once
	done := make(chan struct{})
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func(ctx context.Context) error {
		const pause = 20 * time.Millisecond // of a Retry-After header, say
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

// A task for later. The broker keeps it, not this program; nothing waits behind it.
func ExampleTask_delay() {
	server := newExample()
	defer server.Close()
	sent := make(chan string)
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func(to string) { sent <- to }}})

	later := dispatcher.NewTask("send", "ann, a moment later")
	later.Delay = 500 * time.Millisecond
	begin := time.Now()
	publish(server, later)
	publish(server, dispatcher.NewTask("send", "bob, at once"))
	fmt.Println(<-sent)
	fmt.Println(<-sent)
	fmt.Println("never early:", time.Since(begin) >= later.Delay)
	// Output:
	// bob, at once
	// ann, a moment later
	// never early: true
}

// The same as a time, by this machine's clock.
func ExampleTask_notBefore() {
	server := newExample()
	defer server.Close()
	ran := make(chan time.Time)
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func() { ran <- time.Now() }}})

	task := dispatcher.NewTask("send")
	task.NotBefore = time.Now().Add(30 * time.Millisecond)
	publish(server, task)
	fmt.Println("early:", (<-ran).Before(task.NotBefore))

	task.NotBefore = time.Now().AddDate(2, 0, 0)
	fmt.Println("refused:", errors.Is(server.Publish(task), dispatcher.ErrRejected)) // a year is the most
	// Output:
	// early: false
	// refused: true
}

// A task that is of no use after an hour: it does not start later than that, and is not tried again later than that.
func ExampleTask_expiresAt() {
	dead := make(chan dispatcher.DeadLetterEvent)
	server := newExampleWithHooks(dispatcher.Hooks{DeadLettered: func(e dispatcher.DeadLetterEvent) { dead <- e }})
	defer server.Close()
	run(server, map[string]dispatcher.TaskConfig{"send": {
		Function: func() error { return dispatcher.RetryAfter(2*time.Hour, errors.New("closed for lunch")) },
	}})

	task := dispatcher.NewTask("send")
	task.ExpiresAt = time.Now().Add(time.Hour)
	publish(server, task)
	e := <-dead
	fmt.Printf("%s: %v\n", e.Reason, e.Err)

	task.ExpiresAt = time.Now().Add(-time.Second)
	fmt.Println("refused:", errors.Is(server.Publish(task), dispatcher.ErrExpired))
	// Output:
	// expired: closed for lunch
	// refused: true
}

// Metrics and a log, each with the hooks it needs; both are called, in this order.
func ExampleTee() {
	metrics := dispatcher.Hooks{
		Started:  func(e dispatcher.StartEvent) { fmt.Printf("attempts_total{task=%q} +1\n", e.Task.Name) },
		Finished: func(e dispatcher.FinishEvent) { fmt.Printf("verdicts_total{verdict=%q} +1\n", e.Verdict) },
	}
	done := make(chan struct{})
	log := dispatcher.Hooks{
		Finished: func(e dispatcher.FinishEvent) {
			fmt.Printf("%s of tenant %v: %s, %v\n", e.Task.Name, e.Task.Headers["tenant"], e.Verdict, e.Err)
			close(done)
		},
	}
	server := newExampleWithHooks(dispatcher.Tee(metrics, log))
	defer server.Close()
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func() error { return errors.New("no route to host") }}})

	task := dispatcher.NewTask("send")
	task.Headers = map[string]any{"tenant": "blue"} // hooks see the headers, not the arguments
	publish(server, task)
	<-done
	// Output:
	// attempts_total{task="send"} +1
	// verdicts_total{verdict="dead_letter"} +1
	// send of tenant blue: dead_letter, no route to host
}

// A function around the task function: it sees the context and the error of every attempt.
func ExampleMiddleware() {
	traced := func(next dispatcher.TaskFunc) dispatcher.TaskFunc {
		return func(ctx context.Context) error {
			task, _ := dispatcher.TaskFromContext(ctx)
			fmt.Println("begin", task.Name)
			err := next(ctx)
			fmt.Println("end", task.Name, err)
			return err
		}
	}
	done := make(chan struct{})
	server := newExampleWithHooks(dispatcher.Hooks{Finished: func(dispatcher.FinishEvent) { close(done) }})
	defer server.Close()
	run(server, map[string]dispatcher.TaskConfig{"send": {
		Function:   func(to string) { fmt.Println("send to", to) },
		Middleware: []dispatcher.Middleware{traced},
	}})

	publish(server, dispatcher.NewTask("send", "ann@example.org"))
	<-done
	// Output:
	// begin send
	// send to ann@example.org
	// end send <nil>
}

// A delayed task is routed when it is due. If no queue takes it then, it is kept, and can be replayed when there is one.
func ExampleServer_DeadLetters_undeliverable() {
	server := newExample()
	defer server.Close()
	task := dispatcher.NewTask("send", "ann@example.org")
	task.Delay = 300 * time.Millisecond
	publish(server, task) // nil although there is no queue: the broker has stored it
	waitForDeadLetters(server, dispatcher.Undeliverable, 1)

	sent := make(chan string)
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func(to string) { sent <- to }}})
	fmt.Println(server.DeadLetters(dispatcher.Undeliverable).ReplayAll(context.Background()))
	fmt.Println("sent to", <-sent)
	// Output:
	// 1 <nil>
	// sent to ann@example.org
}
