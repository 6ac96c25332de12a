package dispatcher

import (
	"context"
	"time"
)

// Outbox keeps tasks that could not be sent, until they can be: see ServerConfig.Outbox. [MemoryOutbox] is one that ends with
// the process; others may write to a file or a database.
//
// It keeps entries in the order of [Outbox.Add], each routing key on its own, and beside them the dead entries: those that
// the broker has refused, for a person to look at. What becomes of an entry is decided by the server, not here.
//
// Rules for every method: safe for use by many goroutines at once; returns soon after its ctx ended. A method that panics, or
// ends its goroutine, counts as one that returned an error: its effect is unknown. An outbox belongs to one
// server at a time, which learns of entries that others put in only from an [OutboxNotifier]. When that server is closed, another may
// have it, in this process or the next one, and goes on with what is there. Package outboxtest checks these rules.
//
// An entry is read only once it was handed over, in both directions; Body and Headers are not copied.
type Outbox interface {
	// Add keeps e as the newest entry of its routing key. nil says that it is kept, as safely as this outbox keeps things. Its
	// error becomes the outcome of the publish: one that Is [ErrNotSent], [ErrOutboxFull] among them, or [ErrRejected] says
	// that e is certainly not kept; any other that e may be kept or not, and the publish is [ErrUnconfirmed]. e.ID is empty and
	// for the outbox to choose. ctx is that of the publish.
	Add(ctx context.Context, e OutboxEntry) error

	// Oldest returns the entry of a routing key that was added first, and false if there is none. It stays where it is.
	Oldest(ctx context.Context, routingKey string) (OutboxEntry, bool, error)

	// Remove forgets an entry: the broker has confirmed it. It is a success if there is none of this RoutingKey and ID. After
	// an error it is called again; if the program ends before it succeeds, the task is sent again by the next one.
	Remove(ctx context.Context, e OutboxEntry) error

	// Bury moves an entry to the dead ones, with the Refused and RefusedAt that e carries. Otherwise like Remove. There must be
	// room for it: dead entries count towards what an outbox may hold. An entry that is dead already stays as it is.
	Bury(ctx context.Context, e OutboxEntry) error

	// Keys returns the routing keys that have entries, dead ones not counted, in any order. NewServer asks once, to go on with
	// what an earlier program left.
	Keys(ctx context.Context) ([]string, error)

	// Counts tells how many entries there are, for Health and Shutdown.
	Counts(ctx context.Context) (OutboxCounts, error)
}

// OutboxNotifier is an [Outbox] that reports entries which came otherwise than by Add, such as a dead entry that a person retries.
// From any other outbox a server sends such an entry once it keeps another one of the same routing key, or when it starts.
type OutboxNotifier interface {
	Outbox

	// Notify makes the outbox call added with the routing key of each such entry, after it was kept. Only the last call counts;
	// NewServer makes one. added is safe for concurrent use and does not block.
	Notify(added func(routingKey string))
}

// DurableOutbox is an [Outbox] that keeps its entries for the next process. [Server.Shutdown] empties it while the broker takes tasks, and
// does not wait for a lost connection, but for the answer to an entry that was sent. What is left is logged, and no error unless the outbox
// cannot count it.
type DurableOutbox interface {
	Outbox

	// Durable reports whether the entries outlive the process. NewServer calls it once.
	Durable() bool
}

// OutboxCounts is how much is in an [Outbox].
type OutboxCounts struct {
	Entries int // waiting to be sent, over all routing keys
	Dead    int // refused by the broker, waiting for a person
}

// OutboxEntry is one task in an [Outbox]: encoded, checked, and ready to be sent. All of it is data, to be written anywhere.
type OutboxEntry struct {
	// ID is chosen by the outbox and means nothing to others; with RoutingKey it names the entry, also among the dead ones.
	ID string
	// Exchange is where the task was published, and where it is sent. "", from a program that did not store it yet: the server's.
	Exchange    string
	RoutingKey  string
	UUID        string // of the task; every time the entry is sent it is the same
	Name        string // of the task
	ContentType string // of Body. "", from a program that did not store it yet: application/json
	Body        []byte
	// Headers hold string, bool, int64, float64, []byte, time.Time, nil, and []any and map[string]any of these; an outbox that
	// writes them has to give back the same types.
	Headers    map[string]any
	NotBefore  time.Time // when the task may enter its queues; zero = as soon as it is sent
	AcceptedAt time.Time // when it was published; its messages carry it as their timestamp

	Refused   string    // why the broker refused it; "" unless it is dead
	RefusedAt time.Time // zero unless it is dead
}
