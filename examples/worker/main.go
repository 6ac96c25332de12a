// Command worker runs the tasks that the sender example publishes, until it gets SIGTERM or Ctrl-C:
//
//	export DISPATCHER_AMQP_CON=amqp://guest:guest@localhost:5672/
//	go run ./examples/worker
//
// It exits with 0 after a clean end and with 1 if the connection was lost for good. Let a supervisor restart it.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/seed-416683c9/dispatcher"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Getenv("DISPATCHER_AMQP_CON"), os.Stdout, os.Stderr))
}

func run(ctx context.Context, url string, stdout, stderr io.Writer) int {
	if url == "" {
		fmt.Fprintln(stderr,
			"worker: set DISPATCHER_AMQP_CON to the URL of RabbitMQ, such as amqp://guest:guest@localhost:5672/")
		return 2
	}
	server, lost, err := dispatcher.NewServerContext(ctx, &dispatcher.ServerConfig{
		AMQPConnectionString: url,
		Exchange:             "dispatcher.example",
		DefaultRoutingKey:    "greetings",
		// By default the library reconnects for ever, with growing pauses.
		// Here the program ends after a minute, so that its supervisor can start it elsewhere.
		ReconnectionRetries:         60,
		ReconnectionIntervalSeconds: 1,
	})
	if err != nil {
		fmt.Fprintln(stderr, "worker:", err)
		return 1
	}
	defer server.Close() // gives back tasks that have not started, waits for running ones

	greet := func(ctx context.Context, name string, n int) error {
		task, _ := dispatcher.TaskFromContext(ctx)
		_, err := fmt.Fprintf(stdout, "hello %s, for the %d. time (task %s)\n", name, n, task.UUID)
		return err // an error makes the task a dead letter, in dispatcher.example.greetings.dead
	}
	worker, err := server.NewWorker(
		&dispatcher.WorkerConfig{
			Name:        "greeter",
			Queue:       "dispatcher.example.greetings",
			BindingKeys: []string{"greetings"},
			Limit:       10,
		},
		map[string]dispatcher.TaskConfig{"greet": {Function: greet, TimeoutSeconds: 5}})
	if err != nil {
		fmt.Fprintln(stderr, "worker:", err)
		return 1
	}
	if err := worker.Start(server); err != nil {
		fmt.Fprintln(stderr, "worker:", err)
		return 1
	}
	select {
	case <-ctx.Done():
		return 0
	case <-lost:
		fmt.Fprintln(stderr, "worker: the connection to the broker was given up")
		return 1
	}
}
