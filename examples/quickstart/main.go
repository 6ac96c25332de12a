// Command quickstart runs ten background tasks on the embedded broker, with nothing installed:
//
//	go run ./examples/quickstart
package main

import (
	"fmt"
	"log"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func main() {
	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
		Broker:            memory.New(),
		Exchange:          "app",
		DefaultRoutingKey: "squares",
	})
	check(err)
	results := make(chan string, 10)
	square := func(n int) { results <- fmt.Sprint(n, " squared is ", n*n) }
	worker, err := server.NewWorker(
		&dispatcher.WorkerConfig{Name: "squares", Queue: "squares", BindingKeys: []string{"squares"}},
		map[string]dispatcher.TaskConfig{"square": {Function: square}})
	check(err)
	check(worker.Start(server))

	for n := range 10 {
		check(server.Publish(dispatcher.NewTask("square", n)))
	}
	for range 10 {
		fmt.Println(<-results)
	}
	server.Close() // waits for running tasks
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
