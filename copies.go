package dispatcher

import (
	"time"

	"github.com/google/uuid"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/text"
)

// Copies: the message that stands for a task when it is published again. What is known of the task travels in its headers.

// copy is the task's message as it came, fit to be published again: every message in flight needs an identity, and senders of
// gofort/dispatcher write none.
func (c *call) copy() broker.Message {
	m := c.delivery.Forward()
	if m.ID == "" {
		m.ID = c.uuid
	}
	if m.ID == "" || len(m.ID) > maxNameBytes {
		m.ID = uuid.NewString()
	}
	if m.Type == "" && len(c.name) <= maxNameBytes {
		m.Type = c.name
	}
	m.Headers[headerRoutingKey] = c.routingKey() // the copy itself travels by its queue
	return m
}

// routingKey is the key that the task was published with.
func (c *call) routingKey() string {
	if c.history.routingKey != "" {
		return c.history.routingKey
	}
	return c.delivery.RoutingKey
}

// forwarded is the copy that a verdict asks for.
func (c *call) forwarded(v verdict, worker string, now time.Time) broker.Message {
	m := c.copy()
	h := m.Headers
	if v.made.Number > 0 {
		h[headerAttempt] = int64(v.made.Number)
		writeAttemptLog(h, append(attemptLog(h), v.made))
	}
	if v.missed && v.action != toDeadLetters {
		h[headerMisses] = int64(c.history.misses + 1)
		h[headerMissedSince] = writeInstant(c.history.missedSince(now))
	}
	switch v.action {
	case retryLater:
		if v.wish.kind == wishRetryAfter {
			h[headerAsked] = int64(c.history.asked + 1)
		}
		// It has ended an attempt, and was known.
		delete(h, headerLosses)
		delete(h, headerMisses)
		delete(h, headerMissedSince)
	case toBack, toSuspects, putOff:
		h[headerLosses] = int64(v.losses)
	case toDeadLetters:
		h[headerReason] = v.reason
		h[headerError] = v.text
		h[headerAttempt] = int64(max(v.made.Number, c.history.attempts))
		h[headerQueue] = broker.Owner(c.delivery.Queue)
		h[headerDiedAt] = writeInstant(now)
		h[headerWorker] = worker
	}
	return m
}

// slimDown takes out of the headers of a copy what can be done without.
func slimDown(headers map[string]any) {
	if log := attemptLog(headers); len(log) > 0 { // when it began must stay known: MaxAge counts from there
		log[0].Error = ""
		writeAttemptLog(headers, log[:1])
	} else {
		delete(headers, headerLog) // somebody else's, of whatever size
	}
	if said, ok := headers[headerError].(string); ok {
		headers[headerError] = text.Cut(said, maxLoggedError)
	}
}

// bareHeaders leaves only what forwarded writes into a dead letter, and says so. A name that begins like ours proves nothing.
func bareHeaders(headers map[string]any) {
	slimDown(headers)
	for name := range headers {
		switch name {
		case headerAttempt, headerLog, headerRoutingKey, headerReason, headerError, headerQueue, headerDiedAt, headerWorker:
		default:
			delete(headers, name)
		}
	}
	headers[headerError] = stringOf(headers[headerError]) + " (the publisher's headers were dropped: the broker cannot carry them beside these)"
}
