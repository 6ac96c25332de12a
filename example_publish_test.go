package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// The error of Publish says whether the program may try again.
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

// PublishBatch publishes many tasks at once and returns one outcome for each.
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

// PublishAsync lets one goroutine publish as fast as the broker takes tasks. Each outcome goes to a function.
func ExampleServer_PublishAsync() {
	server := newExample()
	defer server.Close()
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func(int) {}}})

	var reported sync.WaitGroup
	var confirmed atomic.Int64
	for reader := range 1000 {
		reported.Add(1)
		server.PublishAsync(context.Background(), dispatcher.NewTask("send", reader), func(err error) {
			defer reported.Done()
			if err == nil {
				confirmed.Add(1)
			}
		})
	}
	reported.Wait()
	fmt.Println("confirmed", confirmed.Load())
	// Output: confirmed 1000
}

// PublishAll publishes very many tasks. The sequence makes each task when it is needed, and each task has its outcome.
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
				return // the rest is not sent either; the same holds when your own ctx has ended
			default: // ErrNotSent or ErrUnconfirmed: try again under the same uuid
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
