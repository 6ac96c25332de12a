package dispatcher

import (
	"time"

	"github.com/seed-416683c9/dispatcher/internal/contain"
	"github.com/seed-416683c9/dispatcher/internal/link"
)

// This file is the user's side of reconnecting: the states, the policy made of the Reconnection… fields, and the hooks.
// Package link does the work.

// State is the state of a server's connection.
type State string

const (
	StateConnected  State = "connected"
	StateConnecting State = "connecting" // lost, and the server is reconnecting
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
