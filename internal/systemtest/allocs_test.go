//go:build !race

package systemtest_test

import (
	"context"
	"testing"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// From Publish to the function, on the embedded broker. The race detector allocates, too, so `make allocs` runs this
// test without it. A larger number is a decision.
func TestAllocationsOfAWholeTask(t *testing.T) {
	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{Broker: memory.New(), Exchange: "e", DefaultRoutingKey: "k", Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	const size = 100
	done := make(chan struct{}, size)
	w, err := server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "q", BindingKeys: []string{"k"}, Limit: 10},
		tasks{"t": fn(func(string, int) { done <- struct{}{} })})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(server); err != nil {
		t.Fatal(err)
	}
	batch := make([]*dispatcher.Task, size)
	got := testing.AllocsPerRun(100, func() {
		for i := range batch {
			batch[i] = dispatcher.NewTask("t", "0123456789abcdef0123456789abcdef", 42)
		}
		if errs := server.PublishBatch(context.Background(), batch); errs != nil {
			t.Fatal(errs)
		}
		for range batch {
			<-done
		}
	})
	if most := 7.3 * size; got > most { // measured: 7.14 a task
		t.Errorf("%.1f allocations a task, want at most %.1f", got/size, most/size)
	}
}
