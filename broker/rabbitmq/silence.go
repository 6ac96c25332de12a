package rabbitmq

import (
	"fmt"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// A node that is cut off from the others of its cluster, with cluster_partition_handling = ignore, still accepts
// publishes but answers none for a quorum queue. To a client, a queue without a majority looks the same. So a session
// leaves its node only after a long silence, and rarely.
const (
	// silentNode is how long a node may answer no publish while many wait.
	silentNode = 30 * time.Second
	// silentMany is the number of waiting publishes that counts as many. Fewer may all be for one queue that is in
	// trouble; but an outbox and workers have no more.
	silentMany = 10
	// silentFew is how long a node may answer no publish while fewer wait.
	silentFew = time.Minute
	// silentEvery is how often a session checks.
	silentEvery = 5 * time.Second
	// leftFor is how long a node that was left is tried last, and not left again.
	leftFor = 10 * time.Minute
)

// silence measures how long a node has answered no publish. The zero value is ready.
type silence struct {
	mu    sync.Mutex
	open  int       // written and not answered
	since time.Time // the last answer, or the first message since all were answered
}

// wrote records a written message. The caller calls over when the message has its outcome.
func (x *silence) wrote() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.open == 0 {
		x.since = time.Now()
	}
	x.open++
}

func (x *silence) over() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.open--
}

// answered records an answer of the broker, of any kind.
func (x *silence) answered() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.since = time.Now()
}

// lasted returns how long nothing was answered, how many messages wait, and whether that is too long.
func (x *silence) lasted() (d time.Duration, waiting int, tooLong bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.open == 0 {
		return 0, 0, false
	}
	d = time.Since(x.since)
	return d, x.open, d >= silentFew || d >= silentNode && x.open >= silentMany
}

// watchSilence ends the session when its node is silent and there is another node to use. It returns when the session
// ends.
func (s *session) watchSilence(leave func() bool) {
	tick := time.NewTicker(silentEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.dead:
			return
		}
		if _, blocked := s.Blocked(); blocked { // all nodes block together
			s.silence.answered()
			continue
		}
		if d, n, tooLong := s.silence.lasted(); tooLong && leave() {
			s.fail(fmt.Errorf("%w: the node has answered none of %d publishes for %v; trying another one",
				broker.ErrSessionLost, n, d.Round(time.Second)))
			return
		}
	}
}

// leaver returns the function by which a session asks to leave the node at an address. nil means that there is only one
// node.
func (b *Broker) leaver(address int) func() bool {
	if len(b.addresses) < 2 {
		return nil
	}
	return func() bool { return b.shunned.leave(address, len(b.addresses)) }
}

// leave reports whether a session may leave an address for another of n. It may if neither failed or was left recently.
// Then leave records that the address was left.
func (x *shunned) leave(address, n int) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now()
	for other := range n {
		if other != address && !x.until[other].After(now) && !x.until[address].After(now) {
			x.note(address, now.Add(leftFor))
			return true
		}
	}
	return false
}
