package systemtest_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// benchServer returns a server on an embedded broker.
func benchServer(b *testing.B) *dispatcher.Server {
	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
		Broker: memory.New(), Exchange: "e", DefaultRoutingKey: "k", InitQueues: []dispatcher.Queue{{Name: "q", BindingKeys: []string{"k"}}}, Logger: quiet,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(server.Close)
	return server
}

// benchWorker starts a worker with ten slots that calls run for each task.
func benchWorker(b *testing.B, server *dispatcher.Server, timeout int64, run func()) {
	w, err := server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: "q", BindingKeys: []string{"k"}, Limit: 10},
		map[string]dispatcher.TaskConfig{"t": {TimeoutSeconds: timeout, Function: func(string, int) { run() }}})
	if err != nil {
		b.Fatal(err)
	}
	if err := w.Start(server); err != nil {
		b.Fatal(err)
	}
}

// benchBatch publishes as many tasks as fit into batch.
func benchBatch(b *testing.B, server *dispatcher.Server, batch []*dispatcher.Task) {
	for i := range batch {
		batch[i] = dispatcher.NewTask("t", "0123456789abcdef0123456789abcdef", 42)
	}
	if errs := server.PublishBatch(context.Background(), batch); errs != nil {
		b.Fatal(errs)
	}
}

// BenchmarkEmbeddedPublishToHandler measures the whole path of a task on the embedded broker: encode, publish, queue,
// decode, call and ack. Tasks are published in batches, each after the one before has run.
func BenchmarkEmbeddedPublishToHandler(b *testing.B) {
	for name, timeout := range map[string]int64{"untimed": 0, "timed": 60} {
		b.Run(name, func(b *testing.B) {
			server := benchServer(b)
			const size = 100
			done := make(chan struct{}, size)
			benchWorker(b, server, timeout, func() { done <- struct{}{} })
			batch := make([]*dispatcher.Task, size)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				benchBatch(b, server, batch)
				for range batch {
					<-done
				}
				n += size
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/task")
		})
	}
}

// BenchmarkEmbedded measures a task while a publisher and the slots never wait for each other, and the second half of
// its way alone, from a full queue.
func BenchmarkEmbedded(b *testing.B) {
	for name, full := range map[string]bool{"together": false, "drain": true} {
		b.Run(name, func(b *testing.B) {
			server := benchServer(b)
			var run atomic.Int64
			done := make(chan struct{})
			start := func() {
				benchWorker(b, server, 0, func() {
					if run.Add(1) == int64(b.N) {
						close(done)
					}
				})
			}
			if !full {
				start()
			}
			b.ReportAllocs()
			b.ResetTimer()
			batch := make([]*dispatcher.Task, 100)
			for left := b.N; left > 0; left -= len(batch) {
				benchBatch(b, server, batch[:min(left, len(batch))])
			}
			if full {
				b.ResetTimer()
				start()
			}
			<-done
		})
	}
}
