package dispatcher_test

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// A task function may take a context as its first parameter. The context ends with the task's timeout, and carries the
// task.
func ExampleTaskFromContext() {
	server := newExample()
	defer server.Close()
	done := make(chan struct{})
	run(server, map[string]dispatcher.TaskConfig{"send": {Timeout: time.Minute, Function: func(ctx context.Context, to string) error {
		defer close(done)
		task, _ := dispatcher.TaskFromContext(ctx)
		_, timed := ctx.Deadline()
		fmt.Println(task.Name, task.Headers["tenant"], to, timed)
		return nil
	}}})

	task := dispatcher.NewTask("send", "ann@example.org")
	task.Headers = map[string]interface{}{"tenant": "blue"}
	if err := server.Publish(task); err != nil {
		panic(err)
	}
	<-done
	// Output: send blue ann@example.org true
}

// Args takes the type of each argument from its value. A worker of any program that knows the format can read them.
func ExampleArgs() {
	type order struct{ ID int64 }
	for _, a := range dispatcher.Args("ann", 7, 2.5, []string{"a", "b"}, order{9}) {
		fmt.Println(a.Type, a.Value)
	}
	// Output:
	// string ann
	// int 7
	// float64 2.5
	// []string [a b]
	// json {9}
}

// DecodeTask decodes a message that some other program has read, as a worker would.
func ExampleDecodeTask() {
	task, err := dispatcher.DecodeTask([]byte(`{"uuid":"u-1","name":"send","args":[{"type":"string","value":"ann"},{"type":"int","value":2}]}`))
	if err != nil {
		panic(err)
	}
	var to string
	var copies int
	if err := task.DecodeArgs(&to, &copies); err != nil {
		panic(err)
	}
	fmt.Println(task.Name, to, copies)
	fmt.Println(task.DecodeArgs(&to))
	// Output:
	// send ann 2
	// want 1 argument, got 2
}

// A server may have many workers. Each of them can be found by its name and runs on its own.
func ExampleServer_GetWorkerByName() {
	server := newExample()
	defer server.Close()
	run(server, nil)
	worker, err := server.GetWorkerByName("mailer")
	fmt.Println(worker != nil, err)
	_, err = server.GetWorkerByName("nobody")
	fmt.Println(err)
	worker.Close()
	// Output:
	// true <nil>
	// Worker not found
}
