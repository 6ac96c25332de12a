package dispatcher_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// A task can be published for later. The broker keeps it, not this program. No other task waits behind it.
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

// NotBefore delays a task until a time by this machine's clock.
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
	fmt.Println("refused:", errors.Is(server.Publish(task), dispatcher.ErrRejected)) // the limit is a year
	// Output:
	// early: false
	// refused: true
}

// A task is of no use after an hour. It does not start later than that, and is not tried again later than that.
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
