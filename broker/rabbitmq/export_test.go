package rabbitmq

import (
	"fmt"
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
	all := []map[string]any{deliverArguments(), quorumArguments(), sinkArguments(), probeArguments()}
	for level := exitLevel; level <= highestLevel; level++ {
		all = append(all, levelArguments(level))
	}
	return all
}

// Order returns the indices of the URLs in the order in which the next Open tries them.
func (b *Broker) Order() []int { return b.shunned.order(len(b.addresses)) }

// Shun makes a node one that failed just now.
func (b *Broker) Shun(i int) { b.shunned.add(i) }

// Shunned returns how many nodes failed lately.
func (b *Broker) Shunned() int { return len(b.shunned.until) }

// ExitOf names the exit through which delayed messages come to a queue.
func ExitOf(queue string) string { return exitOf(target{key: queue}.word()) }

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

// AgeBindings makes what b knows of bindings too old to rely on.
func AgeBindings(b *Broker) {
	m := b.addresses[0].memory
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, x := range m.bound {
		if !x.named.IsZero() {
			x.named = x.named.Add(-bindingAge)
		}
	}
}

// WithProbes sets how often a session that nobody uses yet sends probes, and when they are late.
func WithProbes(s broker.Session, every, margin time.Duration) broker.Session {
	p := &s.(*session).delays.probes
	p.every, p.margin = every, margin
	return s
}

// WithMaxUnanswered sets how many answers the broker may owe that nobody waits for, in a session that nobody uses yet.
func WithMaxUnanswered(s broker.Session, n int) broker.Session {
	s.(*session).publish.maxUnanswered = n
	return s
}

// Held says what of the publisher's a session that has ended has not given back; "" = nothing.
func Held(s broker.Session) string {
	p := s.(*session).publish
	p.mu.Lock()
	defer p.mu.Unlock()
	held := ""
	for what, n := range map[string]int{
		"places": len(p.publishSlots), "places for settling": len(p.settleSlots), "quotas": len(p.quotas), "orphans": p.orphans,
	} {
		if n != 0 {
			held += fmt.Sprintf("%d %s ", n, what)
		}
	}
	for i := range p.ports {
		if len(p.ports[i].writing) != 0 {
			held += fmt.Sprintf("the turn of port %d ", i)
		}
	}
	return held
}
