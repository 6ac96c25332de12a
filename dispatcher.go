// Package dispatcher turns plain functions into background tasks.
//
// A [Server] is one connection to a message broker. It publishes a [Task], which names a function and carries typed
// arguments. It also runs the functions that are registered with its [Worker]s. The program that publishes a task and
// the one that runs it may be different, on different machines. Here they are one:
//
//	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
//		AMQPConnectionString: "amqp://user:password@localhost/", // or Broker: memory.New()
//		Exchange: "app", DefaultRoutingKey: "mail",
//	})
//	worker, err := server.NewWorker(
//		&dispatcher.WorkerConfig{Name: "mailer", Queue: "mail", BindingKeys: []string{"mail"}},
//		map[string]dispatcher.TaskConfig{"send": {Function: func(to string, n int) error { return nil }}})
//	err = worker.Start(server)
//	err = server.Publish(dispatcher.NewTask("send", "ann@example.org", 7))
//
// # What is promised
//
// Publish returns nil only when the broker has confirmed the task and it is in a queue. A task is taken off its queue
// only after its function has returned without an error (or with [Discard]), or after its retry or dead letter was
// confirmed. So a confirmed task runs at least once, and after a crash or a lost link perhaps twice. Functions should
// therefore tolerate a second run. docs/guarantees.md has every case.
//
// All methods may be called by many goroutines at once. Every method returns in bounded time, whatever the broker does,
// unless it is configured to wait for ever. docs/guarantees.md lists the bounds.
package dispatcher

import (
	"crypto/tls"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// ServerConfig configures a [Server]. NewServer copies it and never writes to it.
type ServerConfig struct {
	// AMQPConnectionString is the URL of RabbitMQ: amqp://user:password@host:port/vhost, or amqps:// for TLS, with
	// reserved characters percent-encoded. "" means amqp://guest:guest@localhost:5672/. Parameters are those of the
	// RabbitMQ URI specification; an unknown one is an error. Several URLs of the nodes of one cluster, separated by
	// commas, are tried in random order. The string is never logged.
	AMQPConnectionString string
	// TLSConfig enables TLS with this configuration, which is cloned for every connection. nil: no TLS, unless the URL
	// or SecureConnection asks for it. Chain and host name are verified unless its InsecureSkipVerify is set.
	TLSConfig *tls.Config
	// SecureConnection enables verified TLS: amqp:// in the URLs becomes amqps://, and an explicit port stays.
	SecureConnection bool
	// ConnectionName is the name that RabbitMQ's tools show. "": dispatcher.
	ConnectionName string
	// QueueType is the kind of all queues that the server and its workers declare. "" is classic, as gofort/dispatcher
	// declares them; "quorum" is replicated. A queue that exists keeps its kind, and declaring it with another one is
	// an error.
	QueueType string

	// Broker replaces RabbitMQ; memory.New() is the embedded broker. Many servers may share one value. Setting it
	// together with any of the five fields above is an error.
	Broker broker.Broker

	// ReconnectionRetries is how many times a connection is tried again, in the first connect and in every outage,
	// before it is given up. 0: an outage is retried for ever, but the first connect is tried only once, so that a
	// wrong address shows at the start. Negative: one try only.
	ReconnectionRetries int
	// ReconnectionRetriesForever retries without end, in the first connect too. ReconnectionRetries is then ignored.
	ReconnectionRetriesForever bool
	// ReconnectionIntervalSeconds is the pause between two tries. It varies by 20 % either way, so that a hundred
	// programs do not come back in the same instant. 0: a random pause whose upper bound grows from 0.5 s to 30 s.
	// Negative: an error.
	ReconnectionIntervalSeconds int64

	// Exchange receives every published task. It is a durable direct exchange, declared at every connect. Required; at
	// most 255 bytes.
	Exchange string
	// DefaultRoutingKey is used for tasks without one. Required; at most 255 bytes.
	DefaultRoutingKey string
	// InitQueues are declared and bound to Exchange at every connect, so that published tasks have a queue before the
	// first worker runs. Names and keys must not be empty; at most 255 bytes.
	InitQueues []Queue

	// Outbox keeps tasks that cannot be sent now and sends them later. nil: no outbox. With it, Publish,
	// PublishContext, PublishBatch, PublishAll and PublishAsync do not wait for a connection. A task that was certainly
	// not sent, because there is no connection or the broker blocks publishers, goes to the outbox. The error then Is
	// [ErrInOutbox]: the task is kept, do not publish it again. If the outbox has no room, the error is
	// [ErrOutboxFull]. A task that may have been sent is [ErrUnconfirmed], as without an outbox.
	//
	// While a routing key has entries in the outbox, all its tasks go through it, so that none overtakes another. They
	// leave in their order, one at a time, each confirmed before the next, and up to 64 keys side by side. So a key
	// stays in the outbox as long as its tasks are published faster than the broker confirms them one by one.
	//
	// An entry whose outcome is unknown is sent again with the same uuid, so it may run twice. A nacked entry
	// ([ErrNacked]) is sent again until its queue takes it. An entry becomes a dead entry if the broker refuses it, or
	// ends five connections or channels because of it. Dead entries are kept, counted in Stats.OutboxDead and reported
	// to Hooks.OutboxRefused, and the next entry is sent.
	//
	// Entries go to the exchange that they were published to, even if Exchange has changed since.
	//
	// One outbox belongs to one server at a time. If entries remain when the server closes, Shutdown returns
	// [ErrOutboxNotEmpty], or logs a warning if the outbox is a [DurableOutbox].
	//
	// With an outbox, NewServer returns a server even while the broker cannot be reached. Shutdown and Close use their
	// time to connect and empty the outbox. If it is durable, they stop as soon as the broker takes no tasks.
	// [MemoryOutbox] ends with the process; package outbox/bolt keeps tasks in a file.
	Outbox Outbox

	// PublishTimeout bounds every publish, including the wait for a connection, for a broker that blocks publishers,
	// and for the confirmation. An outbox may take five seconds more to store the task. 0: 30 s. Negative: an error.
	PublishTimeout time.Duration
	// ShutdownTimeout is how long Close waits for running tasks and the outbox, in total. 0: 30 s. Negative: without
	// limit, as gofort/dispatcher did.
	ShutdownTimeout time.Duration
	// MaxBodyBytes is the largest encoded task. Publish refuses a larger one, and a worker makes it a dead letter. 0:
	// 1 MiB. Negative: the broker's own limit.
	MaxBodyBytes int

	// Retry decides when tasks are tried again after a failed attempt, unless their TaskConfig or WorkerConfig does.
	// nil: one attempt, then a dead letter.
	Retry *RetryPolicy
	// Hooks are called when something has happened.
	Hooks Hooks

	// Logger receives the library's log messages. nil: logrus on standard error, at level info.
	Logger Log
	// DebugMode sets the default logger's level to debug. It has no effect on a Logger of the user's.
	DebugMode bool
}

// String returns all fields, without the credentials in AMQPConnectionString.
func (c ServerConfig) String() string {
	type plain ServerConfig
	p := plain(c)
	if c.AMQPConnectionString != "" {
		p.AMQPConnectionString = rabbitmq.Config{URLs: splitURLs(c.AMQPConnectionString)}.String()
	}
	return fmt.Sprintf("%+v", p)
}

// GoString returns what String returns, so that no format shows credentials.
func (c ServerConfig) GoString() string { return c.String() }

// Queue is a queue and the routing keys that lead to it. It will never get more fields, because programs write it
// unkeyed.
type Queue struct {
	Name        string
	BindingKeys []string
}

// WorkerConfig configures a [Worker]. NewWorker copies it and never writes to it.
type WorkerConfig struct {
	// Limit is how many calls run at once, inside their timeouts. 0: 3. Negative or above 65,535: an error.
	Limit int
	// Prefetch is how many tasks the broker hands to this worker before one of them is settled. 0: the worker decides. It
	// begins with Limit, adds what it finishes in a tenth of a second, up to 1,000 in all or 16 MiB of bodies, and gives
	// back what it has fetched when its tasks become long and another worker is idle. With a number, tasks wait here
	// however long the others take. Less than Limit, or above 65,535: an error.
	Prefetch int
	// AckEach acknowledges each task at once. Otherwise RabbitMQ may get the acknowledgements of up to 100 tasks, or of
	// two milliseconds, together, which is half again as fast. If the connection is lost meanwhile, these tasks run
	// again.
	AckEach bool
	// Queue is the durable queue that the worker takes tasks from. It is declared together with the queue of its dead
	// letters, <Queue>.dead, and of its suspects, <Queue>.suspects. Required; at most 240 bytes, not ending in .dead or
	// .suspects.
	Queue string
	// BindingKeys are bound from the server's Exchange to Queue. None: nothing is bound.
	BindingKeys []string
	// Name identifies the worker in its server, in logs and in the broker's tools. Required; at most 255 bytes.
	Name string
	// MaxAbandoned bounds the calls that still run after their timeout and whose slot was given to others. At this
	// bound an overdue call keeps its slot. 0: the same as Limit. Negative: none, an overdue call always keeps its
	// slot.
	MaxAbandoned int
	// Retry decides when tasks are tried again after a failed attempt, unless their TaskConfig does. nil: as the server
	// says.
	Retry *RetryPolicy
	// Middleware wraps every function, outside the tasks' own; the first is outermost. No element may be nil.
	Middleware []Middleware
	// UnknownTaskMaxAge is how long a task is put off whose name this worker does not know, counted from the first
	// time. Then it becomes a dead letter. It is put off because in a rolling deployment a worker that knows it may
	// still come. 0: 1 h. Negative: a dead letter at once.
	UnknownTaskMaxAge time.Duration
}

// Log receives the library's log messages. *logrus.Logger and *logrus.Entry implement it, and [SlogLogger] makes one of
// a *slog.Logger.
//
// These three receive a message as a short text, and its queue, worker, task, uuid, attempt, err and so on as fields or
// attributes. Any other Log gets one text with the attributes behind it: attempt failed queue=mail worker=mailer
// task=send … err="no route". Only the stack of a panic has lines of its own.
//
// If a Log also has the method Warnf(format string, args ...interface{}), it gets warnings there; otherwise they go to
// Errorf. docs/guarantees.md lists what is logged at which level. The library calls only the methods whose names end in
// f.
//
// A Log must be safe for concurrent use. Bodies, argument values and passwords are never logged. A message whose method
// panics is dropped.
type Log interface {
	Info(args ...interface{})
	Infof(format string, args ...interface{})
	Debug(args ...interface{})
	Debugf(format string, args ...interface{})
	Error(args ...interface{})
	Errorf(format string, args ...interface{})
}
