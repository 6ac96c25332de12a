package dispatcher_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// When a node is killed, RabbitMQ marks all that its classic queues hold as redelivered, what nobody ever had included. That must
// not move a whole backlog, nor make suspects of tasks that were lost once before.
func TestABacklogIsNotSuspectedWhenItsNodeWasKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	r := placeOn(t, n.url)
	r.serve()
	const each, credible = 150, 20
	w := r.newWorker(nil) // declares the queues
	fill := func(queue, name string, losses any) {
		t.Helper()
		b, err := rabbitmq.New(rabbitmq.Config{URLs: []string{n.url.String()}})
		if err != nil {
			t.Fatal(err)
		}
		s, err := b.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		msgs := make([]broker.Message, each)
		for i := range msgs {
			id := fmt.Sprintf("%s %d", name, i)
			msgs[i] = message("n", id, map[string]any{"x-dispatcher-losses": losses})
			msgs[i].RoutingKey = queue
		}
		errs := make(chan error, each)
		s.Publish(t.Context(), msgs, func(_ int, err error) { errs <- err })
		for range msgs {
			if err := wait(t, errs, "confirmation"); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	fill(r.name, "new", nil)
	fill(r.name, "lost once", int64(1))
	fill(r.name+".suspects", "suspect", int64(4)) // one more loss and each would be a dead letter
	w.Close()

	n.kill(n.pid())
	n.scripts("start")
	r.healed()
	var mu sync.Mutex
	ran := map[string]bool{}
	again, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "again", Queue: r.name, Limit: 5}, tasks{
		"n": fn(func(ctx context.Context) {
			info, _ := dispatcher.TaskFromContext(ctx)
			mu.Lock()
			defer mu.Unlock()
			ran[info.UUID] = true
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	start(t, again, r.server)
	eventually(t, "all have run", func() bool { mu.Lock(); defer mu.Unlock(); return len(ran) == 3*each })
	moved := strings.Count(r.log.String(), "moved to the back of the queue")
	s := r.server.Stats()
	t.Logf("%d moved to the back of the queue, %d made suspects", moved, s.Suspected)
	if moved == 0 || moved > credible || s.Suspected > credible || s.DeadLettered != 0 {
		t.Errorf("%d moved, stats %+v; want at most %d, and no dead letter", moved, s, credible)
	}
	r.queueIs(r.name, 0)
	r.queueIs(r.name+".suspects", 0)
}
