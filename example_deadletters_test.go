package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// newExampleWithDeadLetters makes a server whose tasks for the given addresses have failed. fixed repairs the function.
func newExampleWithDeadLetters(addresses ...string) (server *dispatcher.Server, fixed func()) {
	server = newExample()
	broken := make(chan struct{})
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func(to string) error {
		select {
		case <-broken:
			fmt.Println("sent to", to)
			return nil
		default:
			return errors.New("no route to host")
		}
	}}})
	for i, to := range addresses {
		if err := server.Publish(dispatcher.NewTask("send", to)); err != nil {
			panic(err)
		}
		waitForDeadLetters(server, "mail", i+1)
	}
	return server, func() { close(broken) }
}

// waitForDeadLetters waits until a queue has n dead letters.
func waitForDeadLetters(server *dispatcher.Server, queue string, n int) {
	for {
		count, err := server.DeadLetters(queue).Count(context.Background())
		if err != nil {
			panic(err)
		}
		if count == n {
			return
		}
		<-time.After(time.Millisecond)
	}
}

// List shows which tasks failed, and why.
func ExampleDeadLetters_List() {
	server, _ := newExampleWithDeadLetters("ann@example.org", "bob@example.org")
	defer server.Close()

	letters, err := server.DeadLetters("mail").List(context.Background(),
		dispatcher.DeadLetterFilter{Name: "send", Reason: dispatcher.ReasonFailed}, dispatcher.Page{Limit: 10})
	if err != nil {
		panic(err)
	}
	for _, letter := range letters {
		task, err := letter.Task()
		if err != nil {
			panic(err)
		}
		fmt.Printf("%s %s: %s after %d attempt: %s\n", letter.Name, task.Args[0].Value, letter.Reason, letter.Attempts, letter.Error)
	}
	// Output:
	// send "ann@example.org": failed after 1 attempt: no route to host
	// send "bob@example.org": failed after 1 attempt: no route to host
}

// Once the cause is fixed, Replay runs the tasks again under the same uuids.
func ExampleDeadLetters_Replay() {
	server, fixed := newExampleWithDeadLetters("ann@example.org", "bob@example.org")
	fixed()

	n, err := server.DeadLetters("mail").Replay(context.Background(), dispatcher.DeadLetterFilter{Reason: dispatcher.ReasonFailed})
	if err != nil {
		panic(err)
	}
	fmt.Println(n, "replayed")
	for server.Stats().Succeeded < int64(n) {
		<-time.After(time.Millisecond)
	}
	server.Close()
	// Unordered output:
	// 2 replayed
	// sent to ann@example.org
	// sent to bob@example.org
}

// Delete and Purge remove dead letters that are no longer needed.
func ExampleDeadLetters_Delete() {
	server, _ := newExampleWithDeadLetters("ann@example.org", "bob@example.org")
	defer server.Close()
	dead := server.DeadLetters("mail")

	fmt.Println(dead.Delete(context.Background(), dispatcher.DeadLetterFilter{Until: time.Now().Add(-24 * time.Hour)}))
	fmt.Println(dead.Purge(context.Background()))
	// Output:
	// 0 <nil>
	// 2 <nil>
}

// A delayed task is routed when it is due. If no queue takes it then, it is kept, and can be replayed once there is a
// queue.
func ExampleServer_DeadLetters_undeliverable() {
	server := newExample()
	defer server.Close()
	task := dispatcher.NewTask("send", "ann@example.org")
	task.Delay = 300 * time.Millisecond
	publish(server, task) // nil although there is no queue: the broker has stored it
	waitForDeadLetters(server, dispatcher.Undeliverable, 1)

	sent := make(chan string)
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func(to string) { sent <- to }}})
	fmt.Println(server.DeadLetters(dispatcher.Undeliverable).ReplayAll(context.Background()))
	fmt.Println("sent to", <-sent)
	// Output:
	// 1 <nil>
	// sent to ann@example.org
}
