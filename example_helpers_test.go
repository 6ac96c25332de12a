package dispatcher_test

import (
	"io"
	"log/slog"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// quiet keeps the log out of the examples' output.
var quiet = dispatcher.SlogLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))

// newExample makes the server that the examples use.
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

// publish publishes a task, or ends the example.
func publish(server *dispatcher.Server, task *dispatcher.Task) {
	if err := server.Publish(task); err != nil {
		panic(err)
	}
}

// newExampleWithHooks makes a server with hooks.
func newExampleWithHooks(hooks dispatcher.Hooks) *dispatcher.Server {
	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
		Broker: memory.New(), Exchange: "app", DefaultRoutingKey: "mail", Logger: quiet, Hooks: hooks,
	})
	if err != nil {
		panic(err)
	}
	return server
}
