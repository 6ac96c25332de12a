package rabbitmq

import (
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// WithHeartbeat makes a dead peer be found in twice d, for tests. d is in whole seconds.
func (b *Broker) WithHeartbeat(d time.Duration) *Broker {
	b.heartbeat = d
	return b
}

// QueueArguments returns what queues of a kind are declared with.
func QueueArguments(kind string) (map[string]any, error) { return queueArguments(kind) }

// WithoutDelay makes a session that nobody uses yet one with a broker that has no delays.
func WithoutDelay(s broker.Session) broker.Session {
	s.(*session).can.Delay = false
	return s
}

// DelayArguments returns what the queues and exchanges of delays are declared with.
func DelayArguments() []map[string]any {
	all := []map[string]any{deliverArguments(), quorumArguments()}
	for level := lowestLevel; level <= highestLevel; level++ {
		all = append(all, levelArguments(level))
	}
	return all
}

// Channel returns what tells one channel for the default exchange from the next.
func Channel(s broker.Session) any {
	p := s.(*session).publish
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ports[defaultPort].current
}

// HoldDelays keeps delayed messages from being written until the function that it returns is called.
func HoldDelays(s broker.Session) (release func()) {
	pt := &s.(*session).publish.ports[delayPort]
	pt.writing <- struct{}{}
	return pt.writing.give
}
