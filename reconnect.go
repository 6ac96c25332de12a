package dispatcher

import (
	"context"
	"errors"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/contain"
	"github.com/seed-416683c9/dispatcher/internal/link"
)

// This file is the user's side of reconnecting: the states, the policy made of the Reconnection… fields, the hooks, and
// what is declared in each new connection. Package link does the work.

// State is the state of a server's connection.
type State string

const (
	StateConnected  State = "connected"
	StateConnecting State = "connecting" // lost, or not yet made; the server tries to connect
	StateGivenUp    State = "given up"   // lost for good, because the retries are used up
	StateClosed     State = "closed"     // closed by Close or Shutdown
)

// Undeclared is a queue or an exchange that the server cannot declare now. The server tries again, with pauses up to
// 30 s, as long as it lives.
type Undeclared struct {
	Kind    string    `json:"kind"`    // "queue" or "exchange"
	Name    string    `json:"name"`    // of the queue or exchange
	Problem string    `json:"problem"` // why, mostly in the broker's words
	Since   time.Time `json:"since"`   // when it was first refused
}

// newLink returns the supervisor of the server's connection.
func (s *Server) newLink() *link.Supervisor {
	first, retries := s.cfg.retries()
	return link.New(link.Config{
		Open: s.cfg.Broker.Open, Prepare: s.declare, First: first, Retries: retries, Offline: s.cfg.Outbox != nil,
		Interval: time.Duration(s.cfg.ReconnectionIntervalSeconds) * time.Second, Log: s.log, Changed: s.linkChanged,
	})
}

// retries returns the configured retries of the first connect and of one outage. Negative means for ever.
func (c *ServerConfig) retries() (first, outage int) {
	switch n := c.ReconnectionRetries; {
	case c.ReconnectionRetriesForever:
		return -1, -1
	case n == 0:
		return 0, -1
	default:
		return max(n, 0), max(n, 0)
	}
}

// linkChanged calls the hook for a change of the connection.
func (s *Server) linkChanged(state link.State, err error) {
	hook := s.cfg.Hooks.Disconnected
	if state == link.Connected {
		hook = s.cfg.Hooks.Reconnected
	}
	if hook != nil {
		contain.CallApart(s.log, hook, ConnectionEvent{State(state), err})
	}
}

// declare declares the server's topology in a new session. Workers declare their own. In the first session the broker
// must accept all of it.
func (s *Server) declare(ctx context.Context, session broker.Session, first bool) error {
	if !first {
		return s.declarer.Declare(ctx, session, s.parts())
	}
	return session.Declare(ctx, link.Whole(s.parts()))
}

// parts returns what the server declares: its exchange, and each of InitQueues with its bindings.
func (s *Server) parts() []link.Part {
	exchange := broker.Exchange{Name: s.cfg.Exchange, Kind: broker.Direct}
	parts := []link.Part{{
		Kind:     "exchange",
		Name:     exchange.Name,
		Topology: broker.Topology{Exchanges: []broker.Exchange{exchange}},
	}}
	for _, q := range s.cfg.InitQueues {
		t := broker.Topology{Queues: []broker.QueueSpec{{Name: q.Name}}}
		for _, key := range q.BindingKeys {
			t.Bindings = append(t.Bindings, broker.Binding{Queue: q.Name, Exchange: s.cfg.Exchange, Key: key})
		}
		parts = append(parts, link.Part{Kind: "queue", Name: q.Name, Topology: t})
	}
	return parts
}

// errExchangeGone is the problem reported for everything that was bound to a deleted exchange.
var errExchangeGone = errors.New("the exchange was deleted, and its bindings with it")

// exchangeGone requests a new declaration of the exchange and of everything bound to it. Workers that do not run
// declare their own when they start.
func (s *Server) exchangeGone() {
	parts := s.parts()
	s.mu.Lock()
	for _, w := range s.workers {
		if w != nil && w.current() != nil {
			parts = append(parts, w.parts()[0])
		}
	}
	s.mu.Unlock()
	s.declarer.Redeclare(parts, errExchangeGone)
}

// declareAgain retries refused declarations until the connection is closed or given up.
func (s *Server) declareAgain() {
	defer close(s.declared)
	s.declarer.Run()
}
