package rabbitmq

import "time"

// WithHeartbeat makes a dead peer be found in twice d, for tests. d is in whole seconds.
func (b *Broker) WithHeartbeat(d time.Duration) *Broker {
	b.heartbeat = d
	return b
}

// QueueArguments returns what queues of a kind are declared with.
func QueueArguments(kind string) (map[string]any, error) { return queueArguments(kind) }
