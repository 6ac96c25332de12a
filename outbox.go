package dispatcher

import (
	"context"
	"time"
)

// Outbox stores tasks that cannot be sent now until they can be sent: see ServerConfig.Outbox. [MemoryOutbox] lives in
// the memory of the process. Other implementations may write to a file or a database.
//
// An outbox keeps the entries of each routing key in the order of [Outbox.Add]. Beside them it keeps the dead entries,
// which the broker has refused, for a person to look at. The server decides what becomes of an entry; the outbox does
// not.
//
// Every method must be safe for concurrent use and must return soon after its ctx ends. A method that panics or ends
// its goroutine counts as one that returned an error: its effect is unknown. An outbox belongs to one server at a time.
// Entries that were not added by that server reach it at once only if the outbox is an [OutboxNotifier]. When it is
// closed, another server, in this process or the next one, may take the outbox and goes on with its entries. Package
// outboxtest checks these rules.
//
// An entry is read-only once it has been handed over, in either direction. Body and Headers are not copied.
type Outbox interface {
	// Add stores e as the newest entry of its routing key. Nil means that e is stored, as safely as this outbox stores
	// things. An error becomes the outcome of the publish. If it Is [ErrNotSent] (such as [ErrOutboxFull]) or
	// [ErrRejected], e is certainly not stored. After any other error e may be stored or not, and the publish is
	// [ErrUnconfirmed]. e.ID is empty; the outbox chooses it. ctx is that of the publish.
	Add(ctx context.Context, e OutboxEntry) error

	// Oldest returns the oldest entry of a routing key, and false if there is none. The entry stays in the outbox.
	Oldest(ctx context.Context, routingKey string) (OutboxEntry, bool, error)

	// Remove deletes an entry that the broker has confirmed. It succeeds if no entry has this RoutingKey and ID. After
	// an error it is called again. If the program ends before it succeeds, the next program sends the task again.
	Remove(ctx context.Context, e OutboxEntry) error

	// Bury moves an entry to the dead ones and stores the Refused and RefusedAt of e with it. Otherwise it behaves like
	// Remove. It must not fail for want of room: the entry had a place, and dead entries count towards the outbox's
	// bounds. An entry that is already dead stays as it is.
	Bury(ctx context.Context, e OutboxEntry) error

	// Keys returns the routing keys that have entries, in any order. Dead entries do not count. NewServer calls it
	// once, to go on with the entries of an earlier program.
	Keys(ctx context.Context) ([]string, error)

	// Counts returns the number of entries, for Health and Shutdown.
	Counts(ctx context.Context) (OutboxCounts, error)
}

// OutboxNotifier is an [Outbox] that reports entries which were not put in by Add, such as a dead entry that a person
// retries. With any other outbox, a server sends such an entry when it stores another one of the same routing key, or
// when it starts.
type OutboxNotifier interface {
	Outbox

	// Notify registers added, which the outbox calls with the routing key of each such entry after storing it. Only the
	// last call of Notify counts; NewServer makes one. added is safe for concurrent use and does not block.
	Notify(added func(routingKey string))
}

// DurableOutbox is an [Outbox] that keeps its entries for the next process. [Server.Shutdown] sends them while the
// broker takes tasks. It does not wait for a lost connection, but it waits for the answer to an entry that was sent.
// Remaining entries are logged and are no error, unless the outbox cannot count them.
type DurableOutbox interface {
	Outbox

	// Durable reports whether the entries outlive the process. NewServer calls it once.
	Durable() bool
}

// OutboxCounts holds the number of entries in an [Outbox].
type OutboxCounts struct {
	Entries int // waiting to be sent, over all routing keys
	Dead    int // refused by the broker, waiting for a person
}

// OutboxEntry is one task in an [Outbox]: encoded, checked, and ready to be sent. It is pure data and can be written
// anywhere.
type OutboxEntry struct {
	// ID is chosen by the outbox and means nothing to others. Together with RoutingKey it identifies the entry, also
	// among the dead ones.
	ID string
	// Exchange is where the task was published and where it is sent. "" stands for the server's exchange: an older
	// version of this library stored the entry without it.
	Exchange    string
	RoutingKey  string
	UUID        string // of the task; the same each time the entry is sent
	Name        string // of the task
	ContentType string // of Body; "" = application/json, stored by an older version
	Body        []byte
	// Headers hold string, bool, int64, float64, []byte, time.Time, nil, and []any and map[string]any of these. An
	// outbox that writes them must return the same types.
	Headers    map[string]any
	NotBefore  time.Time // when the task may enter its queues; zero = as soon as it is sent
	AcceptedAt time.Time // when it was published; the timestamp of its messages

	Refused   string    // why the broker refused it; "" unless it is dead
	RefusedAt time.Time // zero unless it is dead
}
