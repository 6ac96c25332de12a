package rabbitmq_test

import (
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
)

// From RabbitMQ 4.0 on, a quorum queue drops a message after 20 returns unless it is declared with another limit. Up to
// 4.2, each reading of a dead letter counts as a return, and so does each worker that stops.
func TestAQuorumQueueKeepsWhatIsGivenBackAgainAndAgain(t *testing.T) {
	t.Parallel()
	s := on(t)
	q := uniqueName()
	if err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: q, Type: "quorum"}}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Delete(testContext(t), q) })
	fill(t, s, q, 1)
	for i := range 50 {
		ds, err := s.TryGet(testContext(t), q, 1)
		if err != nil || len(ds) != 1 {
			t.Fatalf("after %d returns: %d messages, %v", i, len(ds), err)
		}
		if err := ds[0].Release(); err != nil {
			t.Fatal(err)
		}
	}
}
