// Command sender publishes tasks to RabbitMQ, for the worker example:
//
//	export DISPATCHER_AMQP_CON=amqp://guest:guest@localhost:5672/
//	go run ./examples/worker        (in another terminal)
//	go run ./examples/sender 3
//
// It exits with 0 if RabbitMQ has confirmed every task and with 1 if not.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/seed-416683c9/dispatcher"
)

func main() {
	os.Exit(run(os.Args[1:], os.Getenv("DISPATCHER_AMQP_CON"), os.Stdout, os.Stderr))
}

func run(args []string, url string, stdout, stderr io.Writer) int {
	count := 1
	if len(args) > 0 {
		n, err := strconv.Atoi(args[0])
		if err != nil || n < 1 || len(args) > 1 {
			fmt.Fprintln(stderr, "usage: sender [number of tasks]")
			return 2
		}
		count = n
	}
	if url == "" {
		fmt.Fprintln(stderr,
			"sender: set DISPATCHER_AMQP_CON to the URL of RabbitMQ, such as amqp://guest:guest@localhost:5672/")
		return 2
	}
	// A program that publishes once and ends need not watch the channel of a lost connection, since each publish
	// returns its outcome. A long-running program must watch it: see examples/worker.
	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
		AMQPConnectionString: url,
		Exchange:             "dispatcher.example",
		DefaultRoutingKey:    "greetings",
		// The queue exists before the first worker runs. Without it, publishing returns ErrUnroutable.
		InitQueues: []dispatcher.Queue{{Name: "dispatcher.example.greetings", BindingKeys: []string{"greetings"}}},
	})
	if err != nil {
		fmt.Fprintln(stderr, "sender:", err)
		return 1
	}
	defer server.Close()

	tasks := make([]*dispatcher.Task, count)
	for i := range tasks {
		tasks[i] = dispatcher.NewTask("greet", "reader", i+1)
	}
	failed := 0
	for _, err := range server.PublishBatch(context.Background(), tasks) {
		if err != nil {
			failed++
			fmt.Fprintln(stderr, "sender:", err)
			if errors.Is(err, dispatcher.ErrUnconfirmed) {
				fmt.Fprintln(stderr, "sender: that task may have been published anyway")
			}
		}
	}
	fmt.Fprintf(stdout, "%d tasks confirmed, %d not\n", count-failed, failed)
	return min(failed, 1)
}
