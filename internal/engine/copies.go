package engine

import (
	"time"

	"github.com/google/uuid"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/text"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// A copy is the message that stands for a task when it is published again. The history of the task travels in its
// headers.

// again returns the task's message as it came, ready to be published again. Every message in flight needs an identity,
// and programs that use gofort/dispatcher write none.
func (c *Call) again() broker.Message {
	m := c.Delivery.Forward()
	if m.ID == "" {
		m.ID = c.ID
	}
	if m.ID == "" || len(m.ID) > record.MaxName {
		m.ID = uuid.NewString()
	}
	if m.Type == "" && len(c.Name) <= record.MaxName {
		m.Type = c.Name
	}
	m.Headers[record.HeaderRoutingKey] = c.RoutingKey() // the copy itself is routed by its queue's name
	return m
}

// messageFor returns the copy that a verdict asks for.
func (c *Call) messageFor(v verdict.Verdict, worker string, now time.Time) broker.Message {
	m := c.again()
	h := m.Headers
	if v.Made.Number > 0 {
		h[record.HeaderAttempt] = int64(v.Made.Number)
		record.WriteLog(h, append(record.Log(h), v.Made))
	}
	if v.Unknown && v.Action != verdict.ToDeadLetters {
		h[record.HeaderMisses] = int64(c.history.UnknownCount + 1)
		h[record.HeaderMissedSince] = record.FormatTime(c.history.UnknownSince(now))
	}
	switch v.Action {
	case verdict.RetryLater:
		if v.Wish.Kind == verdict.WishRetryAfter {
			h[record.HeaderAsked] = int64(c.history.Asked + 1)
		}
		// The task has ended an attempt, and its name was known. So its losses and misses no longer count.
		delete(h, record.HeaderLosses)
		delete(h, record.HeaderMisses)
		delete(h, record.HeaderMissedSince)
	case verdict.MoveToBack, verdict.MoveToSuspects, verdict.ReturnToSuspects:
		h[record.HeaderLosses] = int64(v.Losses)
	case verdict.ToDeadLetters:
		h[record.HeaderReason] = v.Reason
		h[record.HeaderError] = v.Text
		h[record.HeaderAttempt] = int64(max(v.Made.Number, c.history.Attempts))
		h[record.HeaderQueue] = broker.Owner(c.Delivery.Queue)
		h[record.HeaderDiedAt] = record.FormatTime(now)
		h[record.HeaderWorker] = worker
	}
	return m
}

// slimDown shortens or removes headers that a copy can do without.
func slimDown(headers map[string]any) {
	if log := record.Log(headers); len(log) > 0 { // keep the time of the first attempt: MaxAge counts from it
		log[0].Error = ""
		record.WriteLog(headers, log[:1])
	} else {
		delete(headers, record.HeaderLog) // another program's, of any size
	}
	if said, ok := headers[record.HeaderError].(string); ok {
		headers[record.HeaderError] = text.Cut(said, record.MaxLoggedError)
	}
}

// bareHeaders removes all headers except those that messageFor writes into a dead letter, and says so in the error. A
// name that begins like ours proves nothing.
func bareHeaders(headers map[string]any) {
	slimDown(headers)
	for name := range headers {
		switch name {
		case record.HeaderAttempt, record.HeaderLog, record.HeaderRoutingKey, record.HeaderReason,
			record.HeaderError, record.HeaderQueue, record.HeaderDiedAt, record.HeaderWorker:
		default:
			delete(headers, name)
		}
	}
	headers[record.HeaderError] = record.String(headers[record.HeaderError]) +
		" (the publisher's headers were dropped: the broker cannot carry them beside these)"
}
