package publish

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/logs"
	"github.com/seed-416683c9/dispatcher/internal/text"
)

// Outbox stores messages that cannot be sent now. The root package documents the methods, and adapts the user's outbox
// to them. No method may panic or end its goroutine.
type Outbox interface {
	Add(ctx context.Context, e Entry) error
	Oldest(ctx context.Context, routingKey string) (Entry, bool, error)
	Remove(ctx context.Context, e Entry) error
	Bury(ctx context.Context, e Entry) error
	Keys(ctx context.Context) ([]string, error)
	Counts(ctx context.Context) (Counts, error)

	Notify(added func(routingKey string)) // does nothing if the user's outbox cannot notify
	Durable() bool
}

// Counts holds the number of entries in an outbox. The root package has it too, and documents it.
type Counts struct {
	Entries int
	Dead    int
}

// Entry is one message in an outbox. The root package has it too, and documents it.
type Entry struct {
	ID          string
	Exchange    string
	RoutingKey  string
	UUID        string
	Name        string
	ContentType string
	Body        []byte
	Headers     map[string]any
	NotBefore   time.Time
	AcceptedAt  time.Time

	Refused   string
	RefusedAt time.Time
}

// entryOf returns the outbox entry for a message.
func entryOf(m *broker.Message) Entry {
	return Entry{
		Exchange: m.Exchange, RoutingKey: m.RoutingKey, UUID: m.ID, Name: m.Type, ContentType: m.ContentType,
		Body: m.Body, Headers: m.Headers, NotBefore: m.NotBefore, AcceptedAt: m.Timestamp,
	}
}

// message returns the message of an entry. An entry without an exchange or a content type gets the given one.
func (e *Entry) message(exchange, contentType string) broker.Message {
	return broker.Message{
		Exchange:    cmp.Or(e.Exchange, exchange),
		RoutingKey:  e.RoutingKey,
		ID:          e.UUID,
		Type:        e.Name,
		ContentType: cmp.Or(e.ContentType, contentType),
		Body:        e.Body,
		Headers:     e.Headers,
		NotBefore:   e.NotBefore,
		Timestamp:   e.AcceptedAt,
	}
}

// Health describes an outbox. The root package has it too, and documents it.
type Health struct {
	Entries     int
	Dead        int
	Failing     int
	LastError   error
	LastErrorAt time.Time
}

// insist calls the outbox until it succeeds or ctx ends, with growing pauses. It returns false if the call did not
// succeed.
func (c *Courier) insist(ctx context.Context, what, key string, call func(context.Context) error) bool {
	err := call(ctx)
	if err == nil {
		return true
	}
	c.mu.Lock()
	c.failing++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.failing--
		c.mu.Unlock()
	}()
	pauses := link.RetryPauses()
	for err != nil {
		err = fmt.Errorf("%s with key %q: %w", what, text.Excerpt(key), err)
		c.mu.Lock()
		c.lastErr, c.failedAt = err, time.Now()
		c.mu.Unlock()
		pause := pauses.NextBackOff()
		c.cfg.Log.Warn("outbox failed; trying again", "retry_in", logs.Rounded(pause), "err", text.OneLine(err.Error()))
		if !link.Sleep(ctx, pause) {
			return false
		}
		err = call(ctx)
	}
	return true
}
