package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// quiet keeps the log out of the examples' output.
var quiet = dispatcher.SlogLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))

// newExample makes the server that the examples below use.
func newExample() *dispatcher.Server {
	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
		Broker: memory.New(), Exchange: "app", DefaultRoutingKey: "mail", Logger: quiet,
	})
	if err != nil {
		panic(err)
	}
	return server
}

// run starts a worker on the queue "mail".
func run(server *dispatcher.Server, tasks map[string]dispatcher.TaskConfig) *dispatcher.Worker {
	worker, err := server.NewWorker(&dispatcher.WorkerConfig{Name: "mailer", Queue: "mail", BindingKeys: []string{"mail"}}, tasks)
	if err != nil {
		panic(err)
	}
	if err := worker.Start(server); err != nil {
		panic(err)
	}
	return worker
}

// A function becomes a background task.
func Example() {
	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
		Broker: memory.New(), Exchange: "app", DefaultRoutingKey: "mail", Logger: quiet,
	})
	if err != nil {
		panic(err)
	}
	defer server.Close()

	done := make(chan struct{})
	send := func(to string, copies int) error {
		fmt.Printf("%d to %s\n", copies, to)
		close(done)
		return nil
	}
	worker, err := server.NewWorker(
		&dispatcher.WorkerConfig{Name: "mailer", Queue: "mail", BindingKeys: []string{"mail"}},
		map[string]dispatcher.TaskConfig{"send": {Function: send, TimeoutSeconds: 30}})
	if err != nil {
		panic(err)
	}
	if err := worker.Start(server); err != nil {
		panic(err)
	}

	if err := server.Publish(dispatcher.NewTask("send", "ann@example.org", 2)); err != nil {
		panic(err)
	}
	<-done
	// Output: 2 to ann@example.org
}

// The error of a publish says whether it may be tried again.
func ExampleServer_Publish() {
	server := newExample()
	defer server.Close()

	err := server.Publish(dispatcher.NewTask("send", "ann@example.org"))
	switch {
	case err == nil:
		fmt.Println("confirmed, and in a queue")
	case errors.Is(err, dispatcher.ErrNotSent):
		fmt.Println("certainly not sent: try again")
	case errors.Is(err, dispatcher.ErrUnroutable):
		fmt.Println("no queue takes this key: start a worker, or set InitQueues")
	case errors.Is(err, dispatcher.ErrRejected):
		fmt.Println("refused: trying again will not help")
	case errors.Is(err, dispatcher.ErrUnconfirmed):
		fmt.Println("unknown: trying again may run it twice")
	}
	// Output: no queue takes this key: start a worker, or set InitQueues
}

// Many tasks at once: one outcome for each.
func ExampleServer_PublishBatch() {
	server := newExample()
	defer server.Close()
	var wg sync.WaitGroup
	wg.Add(2)
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func(string) { wg.Done() }}})

	errs := server.PublishBatch(context.Background(), []*dispatcher.Task{
		dispatcher.NewTask("send", "ann@example.org"),
		dispatcher.NewTask("", "nobody"),
		dispatcher.NewTask("send", "bob@example.org"),
	})
	for i, err := range errs {
		fmt.Println(i, err)
	}
	wg.Wait()
	// Output:
	// 0 <nil>
	// 1 Task name was not passed
	// 2 <nil>
}

// A function may take a context first: it ends with the task's timeout, and knows the task.
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

// Arguments get their types from the values; a worker of any program that speaks the format can read them.
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

// A message that some other program has read, decoded as a worker would.
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

// A queue that exists before the first worker runs.
func ExampleServerConfig_initQueues() {
	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
		Broker: memory.New(), Exchange: "app", DefaultRoutingKey: "mail", Logger: quiet,
		InitQueues: []dispatcher.Queue{{Name: "mail", BindingKeys: []string{"mail", "mail.urgent"}}},
	})
	if err != nil {
		panic(err)
	}
	defer server.Close()
	fmt.Println(server.Publish(&dispatcher.Task{Name: "send", RoutingKey: "mail.urgent"}))
	// Output: <nil>
}

// The end of a program: tasks have five seconds to finish, then their contexts are cancelled and they are given back.
func ExampleServer_Shutdown() {
	server := newExample()
	started := make(chan struct{})
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func() {
		close(started)
		fmt.Println("finished")
	}}})
	if err := server.Publish(dispatcher.NewTask("send")); err != nil {
		panic(err)
	}
	<-started

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	fmt.Println(server.Shutdown(ctx))
	// Output:
	// finished
	// <nil>
}

// What an operator wants to know.
func ExampleServer_Health() {
	server := newExample()
	defer server.Close()
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func() {}}})

	health := server.Health(context.Background())
	fmt.Println(health.State, health.OK())
	for _, w := range health.Workers {
		fmt.Println(w.Name, "takes tasks:", w.Consuming, "waiting:", w.Ready, "dead:", w.Dead)
	}
	// Output:
	// connected true
	// mailer takes tasks: true waiting: 0 dead: 0
}

// A task of many workers: each runs on its own, found by its name.
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

// A program on the embedded broker finishes its work before it ends, retries and delayed tasks included.
func ExampleServer_Shutdown_embeddedBroker() {
	embedded := memory.New()
	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
		Broker: embedded, Exchange: "app", DefaultRoutingKey: "mail", Logger: quiet,
	})
	if err != nil {
		panic(err)
	}
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func(to string) { fmt.Println("to", to) }}})
	later := dispatcher.NewTask("send", "ann@example.org")
	later.Delay = 50 * time.Millisecond
	if err := server.Publish(later); err != nil {
		panic(err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	fmt.Println("drained:", embedded.Drain(ctx))
	fmt.Println("closed:", server.Shutdown(ctx))
	// Output:
	// to ann@example.org
	// drained: <nil>
	// closed: <nil>
}

// Very many tasks: the sequence makes each when it is needed, and each has its outcome.
func ExampleServer_PublishAll() {
	server := newExample()
	defer server.Close()
	const readers = 20_000
	var sent atomic.Int64
	done := make(chan struct{})
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func(reader int) {
		if sent.Add(1) == readers {
			close(done)
		}
	}}})

	campaign := func(yield func(*dispatcher.Task) bool) {
		for reader := range readers { // rows of a query, for instance
			if !yield(dispatcher.NewTask("send", reader)) {
				return
			}
		}
	}
	for left := iter.Seq[*dispatcher.Task](campaign); left != nil; {
		var again []*dispatcher.Task
		for task, err := range server.PublishAll(context.Background(), left) {
			switch {
			case err == nil || errors.Is(err, dispatcher.ErrInOutbox):
			case errors.Is(err, dispatcher.ErrRejected):
				fmt.Println(task.UUID, err) // the task is wrong: note it for a person
			case errors.Is(err, dispatcher.ErrServerClosed):
				return // so is the rest; likewise when a ctx of your own has ended
			default: // ErrNotSent or ErrUnconfirmed: under the same uuid
				again = append(again, task)
			}
		}
		if left = nil; again != nil {
			<-time.After(time.Second) // a full queue refuses at once
			left = slices.Values(again)
		}
	}
	<-done
	fmt.Println("sent", sent.Load())
	// Output: sent 20000
}
