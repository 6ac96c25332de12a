package dispatcher

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/wire"
)

// Reasons why a task became a dead letter: DeadLetter.Reason. There may be others in the future.
const (
	// Its function returned an error or panicked, and its policy allows no further attempt.
	ReasonFailed    = "failed"
	ReasonPermanent = "permanent" // its function returned a Permanent error
	ReasonTimeout   = "timeout"   // its function returned an error after its timeout, or did not return
	// Task.ExpiresAt had passed before an attempt, or would have before the next one.
	ReasonExpired       = "expired"
	ReasonUnknownTask   = "unknown_task"  // no function of its name was registered
	ReasonBadArguments  = "bad_arguments" // its arguments do not fit its function
	ReasonMalformed     = "malformed"     // its body is not a task, or its headers cannot be read
	ReasonCrashLoop     = "crash_loop"    // workers were lost again and again while running it
	ReasonUndeliverable = "undeliverable" // no queue took it when it was due; see Undeliverable
)

// DeadLetter is a task that will not run unless it is replayed. All fields come from the message and are untrusted.
// Values that do not parse are left zero.
type DeadLetter struct {
	UUID string // of the task; the message's id if the body has none
	Name string // of the task; the message's type if the body has none

	Queue      string // where a replay sends it; "" = to its exchange, with RoutingKey
	Exchange   string // of an undeliverable task that was published with a delay; "" for all other letters
	RoutingKey string // the key it was published with, as far as known

	Reason   string    // one of the constants Reason…; "" = the message has none
	Error    string    // of the last attempt, or why there was none
	Attempts int       // attempts made; 0 = none, or unknown
	Log      []Attempt // the first attempt and the latest ones, at most 16; nil = none was kept
	DiedAt   time.Time // by the worker's clock; zero = unknown, as for undeliverable tasks
	Worker   string    // the worker that gave it up

	PublishedAt time.Time // by the publisher's clock, in whole seconds on RabbitMQ; zero = unknown
	// A copy of the publisher's own; nil = none. Integers are int64. See also RawHeaders and ExpirationHeader.
	Headers map[string]any
	Body    []byte // a copy of the message's body; Task decodes it
}

// Attempt describes one attempt of a task. It travels with the task and ends in its dead letter.
type Attempt struct {
	Number   int           // from 1
	At       time.Time     // when it began, by the worker's clock
	Duration time.Duration // whole milliseconds
	Worker   string
	Error    string // at most about 200 bytes; "" = none was given
}

// attemptsOf returns a copy of a log, or nil if there is none.
func attemptsOf(log []record.Attempt) []Attempt {
	if log == nil {
		return nil
	}
	attempts := make([]Attempt, len(log))
	for i, a := range log {
		attempts[i] = Attempt(a)
	}
	return attempts
}

// RawHeaders names the header in DeadLetter.Headers that holds unreadable headers: a []byte as they came over the wire,
// possibly cut short. A replayed task runs without them.
const RawHeaders = broker.RawHeaders

// ExpirationHeader and UserIDHeader name the headers in DeadLetter.Headers that hold two AMQP properties of another
// program's message: expiration, in milliseconds as a string, and user-id. A copy (a retry, a dead letter, a replayed
// task) cannot have them as properties: it would expire too early, and RabbitMQ refuses the user id of anybody else.
const (
	ExpirationHeader = broker.ExpirationHeader
	UserIDHeader     = broker.UserIDHeader
)

// Task decodes the body, so that a person can see the arguments or publish a corrected task instead. The value of each
// argument is a json.RawMessage; [Task.DecodeArgs] converts it. The error Is [ErrMalformed].
func (l *DeadLetter) Task() (*Task, error) {
	t, err := DecodeTask(l.Body)
	if err != nil {
		return nil, err
	}
	t.UUID, t.RoutingKey, t.Headers = l.UUID, l.RoutingKey, record.CloneTable(l.Headers)
	for name := range t.Headers {
		if record.IsOwn(name) { // Publish would refuse it
			delete(t.Headers, name)
		}
	}
	return t, nil
}

// identity is the part of a dead letter that filters look at.
type identity struct {
	uuid, name, reason, queue, routingKey string
	diedAt                                time.Time
	headers                               map[string]any // as they came, including the library's
}

// identify reads the identity of a dead letter. The body counts first, as it does for a worker, whose logs have the
// uuid of the body.
func (d *DeadLetters) identify(m *broker.Message) identity {
	who := identity{
		uuid:       m.ID,
		name:       m.Type,
		reason:     ReasonUndeliverable,
		queue:      d.queue,
		routingKey: record.String(m.Headers[record.HeaderRoutingKey]),
		headers:    m.Headers,
	}
	if decoded, err := wire.Decode(m.Body); err == nil {
		who.name = decoded.Name
		if decoded.UUID != "" {
			who.uuid = decoded.UUID
		}
	}
	if d.undeliverable() {
		who.queue = ""
		if m.Exchange == "" {
			who.queue = m.RoutingKey
		}
		who.routingKey = cmp.Or(who.routingKey, m.RoutingKey)
	} else {
		who.reason = record.String(m.Headers[record.HeaderReason])
		who.diedAt = record.Time(m.Headers[record.HeaderDiedAt])
		if m.Unreadable != "" {
			who.reason = ReasonMalformed
		}
	}
	return who
}

// letter makes a dead letter that shares nothing with its message, since the broker may hand out the message again.
func (d *DeadLetters) letter(m *broker.Message) DeadLetter {
	who, h := d.identify(m), m.Headers
	l := DeadLetter{
		UUID:        who.uuid,
		Name:        who.name,
		Queue:       who.queue,
		RoutingKey:  who.routingKey,
		Reason:      who.reason,
		Error:       record.String(h[record.HeaderError]),
		Attempts:    record.Count(h[record.HeaderAttempt]),
		Log:         attemptsOf(record.Log(h)),
		DiedAt:      who.diedAt,
		Worker:      record.String(h[record.HeaderWorker]),
		PublishedAt: m.Timestamp,
		Body:        bytes.Clone(m.Body),
	}
	if m.Unreadable != "" { // RabbitMQ or another program put it here
		l.Error = fmt.Sprintf("its headers cannot be read: %s", m.Unreadable)
	}
	if len(l.Log) > record.MaxLogged { // it was not written by this library
		l.Log = slices.Clone(l.Log[:record.MaxLogged])
	}
	if d.undeliverable() {
		l.Exchange = m.Exchange
	}
	for name, v := range m.Forward().Headers {
		if !record.IsOwn(name) || record.IsForPeople(name) {
			if l.Headers == nil {
				l.Headers = make(map[string]any)
			}
			l.Headers[name] = record.Clone(v)
		}
	}
	return l
}
