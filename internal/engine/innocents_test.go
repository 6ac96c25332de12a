package engine

import (
	"fmt"
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
)

func delivery(queue string, id any) *broker.Delivery {
	return &broker.Delivery{Message: broker.Message{ID: fmt.Sprint(id)}, Queue: queue}
}

func TestATaskIsInnocentOnce(t *testing.T) {
	t.Parallel()
	n := newInnocents()
	n.add(delivery("q", 1))
	n.add(delivery("q", ""))
	for _, c := range []struct {
		d    *broker.Delivery
		want bool
	}{
		{delivery("other", 1), false}, {delivery("q", 2), false}, {delivery("q", ""), false},
		{delivery("q.suspects", 1), true}, {delivery("q", 1), false},
	} {
		if got := n.take(c.d); got != c.want {
			t.Errorf("%s in %s: %t, want %t", c.d.ID, c.d.Queue, got, c.want)
		}
	}
}

// Innocent tasks may go to other servers, so nobody asks for them here. The oldest are forgotten.
func TestTheNumberOfInnocentTasksIsBounded(t *testing.T) {
	t.Parallel()
	n := newInnocents()
	const many = 5 * mostInnocents
	for i := range many {
		n.add(delivery("q", i))
	}
	if held := len(n.now) + len(n.before); held > 2*mostInnocents {
		t.Errorf("%d are held, want at most %d", held, 2*mostInnocents)
	}
	for i := range many {
		if got, newest := n.take(delivery("q", i)), i >= many-mostInnocents; newest && !got {
			t.Fatalf("number %d of %d is forgotten", i, many)
		}
	}
}
