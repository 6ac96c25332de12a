package dispatcher_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-416683c9/dispatcher"
)

// Metrics and a log each set the hooks that they need. Tee calls both, in this order.
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

// A middleware is a function around the task function. It sees the context and the error of every attempt.
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
