package dispatchertest_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/dispatchertest"
)

// newServer makes a server of the kit without a test. In a test, use kit.NewServer(t, nil).
func newServer(kit *dispatchertest.Kit) *dispatcher.Server {
	cfg := kit.Config(nil)
	cfg.Logger = discard{}
	server, _, err := dispatcher.NewServer(cfg)
	if err != nil {
		log.Fatal(err)
	}
	return server
}

// Published returns the published tasks. DecodeArgs returns their arguments as Go values.
func ExampleKit_Published() {
	kit := dispatchertest.New()
	server := newServer(kit)
	defer server.Close()

	reminder := dispatcher.NewTask("remind", "ann@example.org", 3)
	reminder.Delay = 48 * time.Hour
	if err := server.Publish(reminder); err != nil {
		log.Fatal(err)
	}

	for _, task := range kit.Published("remind") {
		var to string
		var times int
		if err := task.DecodeArgs(&to, &times); err != nil {
			log.Fatal(err)
		}
		fmt.Println(task.Name, to, times, "after", task.Delay)
	}
	// Output: remind ann@example.org 3 after 48h0m0s
}

// RunUntilIdle waits until the workers have nothing left to do.
func ExampleKit_RunUntilIdle() {
	kit := dispatchertest.New()
	server := newServer(kit)
	defer server.Close()
	worker, err := server.NewWorker(&dispatcher.WorkerConfig{Name: "mailer", Queue: "test", BindingKeys: []string{"test"}, Limit: 1},
		map[string]dispatcher.TaskConfig{"send": {Function: func(to string) error {
			if to == "" {
				return dispatcher.Permanent(errors.New("no address"))
			}
			return nil
		}}})
	if err != nil {
		log.Fatal(err)
	}
	if err := worker.Start(server); err != nil {
		log.Fatal(err)
	}
	for _, to := range []string{"ann@example.org", ""} {
		if err := server.Publish(dispatcher.NewTask("send", to)); err != nil {
			log.Fatal(err)
		}
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	result, err := kit.RunUntilIdle(ctx)
	fmt.Println(len(result.Succeeded), "succeeded,", err)
	for _, letter := range result.DeadLetters {
		fmt.Println("dead:", letter.Name, letter.Reason, letter.Error)
	}
	// Output:
	// 1 succeeded, <nil>
	// dead: send permanent no address
}
