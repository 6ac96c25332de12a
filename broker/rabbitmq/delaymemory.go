package rabbitmq

import (
	"sync"
	"time"
)

const (
	// bindingAge is how long sessions rely on a binding that one of them has made. Another program may delete the queue
	// and declare it again, which leaves it without the binding, and no session is notified. Making the binding again
	// takes one round trip and changes nothing.
	bindingAge = 30 * time.Second
	// maxBound limits how many queues are remembered. Names of ephemeral queues may be new every time.
	maxBound = 10_000
)

// memory records what the sessions of a Broker have declared for delays, as one user in one virtual host. It outlives
// them: RabbitMQ does not answer queue.bind while a node of its cluster hangs, even for a binding that exists
// (measured: 71 s), so the first delay of a new session would wait for nothing. The zero value is ready.
type memory struct {
	base   errand // declares where due messages go
	levels errand // declares where messages wait

	mu    sync.Mutex
	bound map[string]*bound // by queue: its bindings to the deliver exchange
}

// bound describes the known bindings of a queue to the deliver exchange.
type bound struct {
	words map[string]struct{} // words of the targets that it is bound for
	named time.Time           // when it was last bound by its name, which retries need; zero = not known to be
}

// noteBound records that a queue takes the due messages of a word.
func (m *memory) noteBound(queue, word string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.bound[queue]
	if b == nil {
		if len(m.bound) >= maxBound {
			clear(m.bound)
		}
		if m.bound == nil {
			m.bound = make(map[string]*bound)
		}
		b = &bound{words: make(map[string]struct{})}
		m.bound[queue] = b
	}
	b.words[word] = struct{}{}
	if word == (target{key: queue}).word() {
		b.named = time.Now()
	}
}

// needsBinding reports whether a queue has to be bound for retries, and whether it was bound a while ago. If several
// callers ask when the binding is too old, one has to make it and the others go on.
func (m *memory) needsBinding(queue string, now time.Time) (needed, old bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.bound[queue]
	if b == nil || b.named.IsZero() {
		return true, false
	}
	if now.Sub(b.named) < bindingAge {
		return false, false
	}
	b.named = now
	return true, true
}

// doubt makes the next retry bind the queue again.
func (m *memory) doubt(queue string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.bound[queue]; b != nil {
		b.named = time.Time{}
	}
}

// forgetBindings forgets a queue and returns the words it was bound for.
func (m *memory) forgetBindings(queue string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var words []string
	if b := m.bound[queue]; b != nil {
		for word := range b.words {
			words = append(words, word)
		}
	}
	delete(m.bound, queue)
	return words
}

// forgetBase causes the deliver exchange to be declared again, unless that was done since r. The bindings of all queues
// are gone with the exchange.
func (m *memory) forgetBase(r *run) {
	if !m.base.forget(r) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.bound {
		b.named = time.Time{}
	}
}
