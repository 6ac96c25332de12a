package dispatcher_test

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// InitQueues declares queues before the first worker runs.
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

// Health reports the state of the server to an operator.
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

// At the end of a program, tasks have five seconds to finish. Then their contexts are cancelled, and the tasks are
// given back.
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

// A program on the embedded broker finishes its work before it ends, including retries and delayed tasks.
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
