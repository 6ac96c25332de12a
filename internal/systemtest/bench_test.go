package systemtest_test

import (
	"context"
	"testing"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// BenchmarkEmbeddedPublishToHandler measures the whole path of a task on the embedded broker: encode, publish, queue,
// decode, call and ack. Tasks are published in batches.
func BenchmarkEmbeddedPublishToHandler(b *testing.B) {
	for name, timeout := range map[string]int64{"untimed": 0, "timed": 60} {
		b.Run(name, func(b *testing.B) {
			server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
				Broker: memory.New(), Exchange: "e", DefaultRoutingKey: "k", Logger: quiet,
			})
			if err != nil {
				b.Fatal(err)
			}
			defer server.Close()
			const size = 100
			done := make(chan struct{}, size)
			w, err := server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "q", BindingKeys: []string{"k"}, Limit: 10},
				map[string]dispatcher.TaskConfig{"t": {TimeoutSeconds: timeout, Function: func(string, int) { done <- struct{}{} }}})
			if err != nil {
				b.Fatal(err)
			}
			if err := w.Start(server); err != nil {
				b.Fatal(err)
			}
			batch := make([]*dispatcher.Task, size)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				for i := range batch {
					batch[i] = dispatcher.NewTask("t", "0123456789abcdef0123456789abcdef", 42)
				}
				if errs := server.PublishBatch(context.Background(), batch); errs != nil {
					b.Fatal(errs)
				}
				for range batch {
					<-done
				}
				n += size
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/task")
		})
	}
}
