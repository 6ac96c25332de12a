package dispatcher

import (
	"errors"
	"sync/atomic"
)

// Stats are counts since the server was made. They are read one after the other while work goes on, so sums may be off
// by what happened meanwhile. As JSON they have the names of the tags.
type Stats struct {
	Published   int64 `json:"published"`   // tasks confirmed and routed, also from the outbox
	NotSent     int64 `json:"not_sent"`    // publishes that ended with ErrNotSent
	Rejected    int64 `json:"rejected"`    // … with ErrRejected
	Unconfirmed int64 `json:"unconfirmed"` // … with ErrUnconfirmed
	Outboxed    int64 `json:"outboxed"`    // … with ErrInOutbox
	OutboxDead  int64 `json:"outbox_dead"` // tasks in the outbox that the broker refused

	// Received is the sum of the eight from Succeeded to Lost, except for deliveries without a verdict yet.
	Received  int64 `json:"received"`  // deliveries taken by workers
	Succeeded int64 `json:"succeeded"` // successful attempts that were acknowledged
	Discarded int64 `json:"discarded"` // attempts that failed and were acknowledged because the function said Discard
	Retried   int64 `json:"retried"`   // attempts that failed and are followed by another
	// Deliveries put off without an attempt: unknown tasks, tasks that another call is running, and tasks that were
	// lost once.
	Postponed    int64 `json:"postponed"`
	Suspected    int64 `json:"suspected"`     // deliveries moved to the suspects
	DeadLettered int64 `json:"dead_lettered"` // deliveries that became dead letters, for any reason
	Released     int64 `json:"released"`      // deliveries given back, by a worker that stopped or that had fetched too many
	// Deliveries whose connection ended before they were settled: the broker delivers them again, unless their queue
	// was deleted.
	Lost      int64 `json:"lost"`
	Abandoned int64 `json:"abandoned"` // calls given up on because they ran on after their timeout

	Replayed int64 `json:"replayed"` // dead letters sent back to their queue by DeadLetters.Replay

	Reconnects int64 `json:"reconnects"` // connections made after the first
}

// publishCounters counts the outcomes of publishes.
type publishCounters struct{ published, notSent, rejected, unconfirmed, outboxed, outboxDead atomic.Int64 }

// count notes the outcome of one task and returns it.
func (c *publishCounters) count(err error) error {
	switch {
	case err == nil:
		c.published.Add(1)
	case errors.Is(err, ErrRejected):
		c.rejected.Add(1)
	case errors.Is(err, ErrUnconfirmed):
		c.unconfirmed.Add(1)
	case errors.Is(err, ErrInOutbox):
		c.outboxed.Add(1)
	default:
		c.notSent.Add(1)
	}
	return err
}

// Stats returns the counts. It never blocks.
func (s *Server) Stats() Stats {
	l, _ := s.sup.Now()
	p, t := &s.publisher.stats, &s.counters
	return Stats{
		Published:   p.published.Load(),
		NotSent:     p.notSent.Load(),
		Rejected:    p.rejected.Load(),
		Unconfirmed: p.unconfirmed.Load(),
		Outboxed:    p.outboxed.Load(),
		OutboxDead:  p.outboxDead.Load(),

		Received:     t.Received.Load(),
		Succeeded:    t.Succeeded.Load(),
		Discarded:    t.Discarded.Load(),
		Retried:      t.Retried.Load(),
		Postponed:    t.Postponed.Load(),
		Suspected:    t.Suspected.Load(),
		DeadLettered: t.DeadLettered.Load(),
		Released:     t.Released.Load(),
		Lost:         t.Lost.Load(),
		Abandoned:    t.Abandoned.Load(),

		Replayed:   s.replayed.Load(),
		Reconnects: max(l.Opened-1, 0),
	}
}
