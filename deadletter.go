package dispatcher

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Headers that the library adds to a dead letter. A worker of gofort/dispatcher ignores them.
const (
	headerReason     = headerPrefix + "reason"
	headerError      = headerPrefix + "error"
	headerAttempt    = headerPrefix + "attempt"
	headerQueue      = headerPrefix + "queue"
	headerRoutingKey = headerPrefix + "routing-key"
	headerDiedAt     = headerPrefix + "died-at"
	headerWorker     = headerPrefix + "worker"
)

// maxErrorText bounds the text of an error in a header: a frame of RabbitMQ, which must hold all headers of a message, may
// be as small as 4 KiB (AMQP 0-9-1, frame-min-size), and a stack or a page of HTML is no error text.
const maxErrorText = 1024

// deadLetterMessage is the message that keeps a task that will not run: body, properties and headers as they came, and why
// it died.
func deadLetterMessage(d broker.Delivery, v verdict, worker string, now time.Time) broker.Message {
	m := d.Forward()
	if m.ID == "" || len(m.ID) > maxNameBytes {
		m.ID = uuid.NewString() // a foreign publisher gave it none, and every message in flight needs one
	}
	m.Headers[headerReason] = v.reason
	m.Headers[headerError] = outcomeText(v.err)
	m.Headers[headerAttempt] = int64(1)
	m.Headers[headerQueue] = d.Queue
	m.Headers[headerRoutingKey] = d.RoutingKey
	m.Headers[headerDiedAt] = now.UTC().Format(time.RFC3339Nano)
	m.Headers[headerWorker] = worker
	return m
}

// outcomeText is the text of a task's error, bounded and valid UTF-8. %v contains a panic of the error's own method,
// which err.Error() would not.
func outcomeText(err error) string {
	if err == nil {
		return "ok"
	}
	text := strings.ToValidUTF8(fmt.Sprintf("%v", err), "\uFFFD")
	if len(text) <= maxErrorText {
		return text
	}
	cut := maxErrorText
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}
