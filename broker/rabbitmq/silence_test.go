package rabbitmq_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
)

// A queue that does not answer simulates a node that is cut off from the others. The session ends, and the next one
// uses another node.
func TestSilentNodeIsLeft(t *testing.T) {
	t.Parallel()
	u := amqpURL(t)
	a, b := direct(t), direct(t)
	two := *u
	two.Host = a.Addr()
	cluster := nodes(t, &two, b.Addr())
	s := open(t, cluster)
	q := queue(t, nil)
	pid := fmt.Sprintf(`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"%s">>)), P = amqqueue:get_pid(Q), `, q)
	eval(t, pid+`sys:suspend(P).`)
	t.Cleanup(func() { eval(t, pid+`sys:resume(P).`) })
	msgs := make([]broker.Message, 20)
	for i := range msgs {
		msgs[i] = broker.Message{RoutingKey: q, ID: fmt.Sprint(i)}
	}
	told := make(chan error, len(msgs))
	s.Publish(testContext(t), msgs, func(_ int, err error) { told <- err })
	wait(t, "the session's end", s.Done())
	if err := s.Err(); !errors.Is(err, broker.ErrSessionLost) || !strings.Contains(err.Error(), "none of 20 publishes") {
		t.Errorf("the session ended: %v", err)
	}
	for range msgs {
		if err := <-told; !errors.Is(err, broker.ErrUnconfirmed) {
			t.Errorf("publish: %v", err)
		}
	}
	if cluster.Shunned() != 1 {
		t.Errorf("%d nodes were left, want 1", cluster.Shunned())
	}
	first := cluster.Order()[0]
	for range 20 {
		if next := cluster.Order()[0]; next != first {
			t.Fatalf("nodes %d and %d come first, want the one that was not left", first, next)
		}
	}
}
