package engine

import (
	"sync"

	"github.com/seed-416683c9/dispatcher/broker"
)

// innocents are tasks that this server had fetched and not begun when their connection was lost. The broker marks them
// like those that ran, and delivers them again, perhaps to this server. That mark says nothing about them. A server with
// short tasks may have fetched a thousand.
type innocents struct {
	mu          sync.Mutex
	now, before map[innocent]struct{} // of the newest ones and those before them
}

type innocent struct{ queue, id string }

// mostInnocents bounds each of the two maps. The others may be delivered to other servers, and nobody asks for them.
const mostInnocents = 5 * mostPrefetch

func newInnocents() *innocents { return &innocents{now: map[innocent]struct{}{}} }

// add notes a lost delivery that no slot has begun.
func (n *innocents) add(d *broker.Delivery) {
	if d.ID == "" {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.now) >= mostInnocents {
		n.before, n.now = n.now, map[innocent]struct{}{}
	}
	n.now[innocent{broker.Owner(d.Queue), d.ID}] = struct{}{}
}

// take reports whether a delivery is one of them, once.
func (n *innocents) take(d *broker.Delivery) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.now)+len(n.before) == 0 {
		return false
	}
	is := innocent{broker.Owner(d.Queue), d.ID}
	_, found := n.now[is]
	if !found {
		_, found = n.before[is]
	}
	delete(n.now, is)
	delete(n.before, is)
	return found
}
