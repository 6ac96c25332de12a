package bolt_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
	"github.com/seed-416683c9/dispatcher/outbox/bolt"
)

// unreachable is a broker that nobody can reach.
type unreachable struct{ broker.Broker }

func (unreachable) Open(context.Context) (broker.Session, error) {
	return nil, errors.New("no route to host")
}

// A program starts and publishes while its broker is out of reach. The next program sends the tasks that it has left.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "outbox-*")
	check(err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "outbox.db")

	outbox, err := bolt.Open(path, bolt.Config{})
	check(err)
	server, _, err := dispatcher.NewServer(config(unreachable{}, outbox))
	check(err)
	err = server.Publish(dispatcher.NewTask("send", "ann@example.org"))
	fmt.Println(errors.Is(err, dispatcher.ErrInOutbox))
	server.Close()
	check(outbox.Close())

	outbox, err = bolt.Open(path, bolt.Config{})
	check(err)
	defer outbox.Close()
	sent := make(chan string)
	cfg := config(memory.New(), outbox)
	server, _, err = dispatcher.NewServer(cfg)
	check(err)
	defer server.Close()
	worker, err := server.NewWorker(&dispatcher.WorkerConfig{Name: "mailer", Queue: "mail"},
		map[string]dispatcher.TaskConfig{"send": {Function: func(to string) { sent <- to }}})
	check(err)
	check(worker.Start(server))
	fmt.Println("sent to", <-sent)
	// Output:
	// true
	// sent to ann@example.org
}

// A person looks at the entries that the broker refused, and retries or removes them.
func ExampleOutbox_Dead() {
	dir, err := os.MkdirTemp("", "outbox-*")
	check(err)
	defer os.RemoveAll(dir)
	outbox, err := bolt.Open(filepath.Join(dir, "outbox.db"), bolt.Config{})
	check(err)
	defer outbox.Close()

	ctx := context.Background()
	dead, err := outbox.Dead(ctx)
	check(err)
	for _, e := range dead {
		fmt.Println(e.Name, e.UUID, e.Refused)
		_, err := outbox.RetryDead(ctx, e) // or RemoveDead
		check(err)
	}
	fmt.Println(len(dead), "dead")
	// Output: 0 dead
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
