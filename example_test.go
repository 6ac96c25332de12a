package dispatcher_test

import (
	"fmt"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

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
