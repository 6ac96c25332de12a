package rabbitmq

import (
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// WithHeartbeat sets the heartbeat for tests. A dead peer is found within twice d. d must be whole seconds.
func (b *Broker) WithHeartbeat(d time.Duration) *Broker {
	b.heartbeat = d
	return b
}

// QueueArguments returns the arguments with which queues of a kind are declared.
func QueueArguments(kind string) (map[string]any, error) { return queueArguments(kind) }

// WithoutDelay makes s behave as if its broker had no delays. Nobody may use s yet.
func WithoutDelay(s broker.Session) broker.Session {
	s.(*session).can.Delay = false
	return s
}

// DelayArguments returns the arguments with which the queues and exchanges for delays are declared.
func DelayArguments() []map[string]any {
	all := []map[string]any{deliverArguments(), quorumArguments(), sinkArguments(), probeArguments()}
	for level := exitLevel; level <= highestLevel; level++ {
		all = append(all, levelArguments(level))
	}
	return all
}

// Order returns the indices of the URLs in the order in which the next Open tries them.
func (b *Broker) Order() []int { return b.shunned.order(len(b.addresses)) }

// Shun marks a node as failed just now.
func (b *Broker) Shun(i int) { b.shunned.add(i) }

// Shunned returns how many nodes failed lately.
func (b *Broker) Shunned() int { return len(b.shunned.until) }

// ExitOf returns the name of the exit through which delayed messages reach a queue.
func ExitOf(queue string) string { return exitOf(target{key: queue}.word()) }

// Channel returns a value that identifies the current channel for the default exchange.
func Channel(s broker.Session) any {
	p := s.(*session).publish
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ports[defaultPort].current
}

// HoldDelays holds back delayed messages until release is called.
func HoldDelays(s broker.Session) (release func()) {
	pt := &s.(*session).publish.ports[delayPort]
	pt.writing <- struct{}{}
	return pt.writing.give
}

// AgeBindings ages the bindings that b remembers until b no longer relies on them.
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

// WithProbes sets how often s sends probes, and when they count as late. Nobody may use s yet.
func WithProbes(s broker.Session, every, margin time.Duration) broker.Session {
	p := &s.(*session).delays.probes
	p.every, p.margin = every, margin
	return s
}

// WithMaxUnanswered sets how many answers the broker may owe that nobody waits for. Nobody may use s yet.
func WithMaxUnanswered(s broker.Session, n int) broker.Session {
	s.(*session).publish.maxUnanswered = n
	return s
}

// Held describes what the publisher of an ended session has not given back. It returns "" if nothing is missing.
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
