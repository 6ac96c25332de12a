// Package dispatchertest helps to test programs that use package dispatcher: what they publish and what their tasks do.
//
// A [Kit] replaces the message broker. It is the embedded broker with a record of the published messages, so encoding,
// routing, retries, delays and dead letters are those of a running program:
//
//	kit := dispatchertest.New()
//	server := kit.NewServer(t, nil)
//	err := welcome(server, "ann@example.org") // the code under test: it publishes
//	task := kit.RequirePublished(t, "send", "ann@example.org", 2)
//
// When workers are started, [Kit.RunUntilIdle] waits until they have nothing left to do, and returns what happened.
// Inside testing/synctest, hours of retries and delays take milliseconds. [Context] makes a context for calling a task
// function directly. [dispatcher.Task.DecodeArgs] decodes the arguments of a published task, and
// [dispatcher.DecodeTask] a message's body. docs/testing.md shows all of it.
package dispatchertest

import (
	"sync"
	"testing"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// Kit replaces the message broker in one test. Make it with [New]. Any number of servers may share it, as the programs
// of a system share their broker. All methods are safe for concurrent use. A Kit has no goroutine and nothing to close.
type Kit struct {
	broker *memory.Broker

	mu       sync.Mutex // guards what follows
	records  []*record  // in the order of the calls that published them
	finished []dispatcher.FinishEvent
	serving  map[dispatcher.WorkerEvent]int // workers that are started and not stopped
	stopped  chan struct{}                  // closed when a worker stops; nil while nobody waits
}

// New returns a Kit without queues. In a test that uses testing/synctest, call it inside the bubble.
func New() *Kit {
	return &Kit{broker: memory.New(), serving: make(map[dispatcher.WorkerEvent]int)}
}

// Config returns a copy of cfg that uses the Kit, for a program that makes its server itself. It sets Broker to the
// Kit's, empties the five fields of RabbitMQ (AMQPConnectionString, TLSConfig, SecureConnection, ConnectionName,
// QueueType), and calls the Kit's hooks before those of cfg. Everything else stays. Add your hooks to cfg before
// calling Config. If you replace the hooks of the result, the Kit sees no attempts.
//
// A nil cfg stands for an exchange, a default routing key and a queue, all named "test".
func (k *Kit) Config(cfg *dispatcher.ServerConfig) *dispatcher.ServerConfig {
	if cfg == nil {
		const name = "test"
		cfg = &dispatcher.ServerConfig{
			Exchange:          name,
			DefaultRoutingKey: name,
			InitQueues:        []dispatcher.Queue{{Name: name, BindingKeys: []string{name}}},
		}
	}
	c := *cfg
	c.AMQPConnectionString, c.TLSConfig, c.SecureConnection, c.ConnectionName, c.QueueType = "", nil, false, "", ""
	if c.Broker != (recorder{k}) { // otherwise it comes from this method and already has the Kit's hooks
		c.Broker = recorder{k}
		c.Hooks = dispatcher.Tee(dispatcher.Hooks{
			Finished:      k.finish,
			WorkerStarted: k.workerStarted,
			WorkerStopped: k.workerStopped,
		}, cfg.Hooks)
	}
	return &c
}

// NewServer makes a server from [Kit.Config] of cfg and closes it when the test ends. Without a Logger it logs to the
// test. If the server cannot be made, the test fails at once.
//
// As in production, publishing to a routing key that no queue is bound to fails with [dispatcher.ErrUnroutable]. Start
// the worker first or set ServerConfig.InitQueues.
func (k *Kit) NewServer(tb testing.TB, cfg *dispatcher.ServerConfig) *dispatcher.Server {
	tb.Helper()
	c := k.Config(cfg)
	if c.Logger == nil {
		log := &testLog{tb: tb}
		tb.Cleanup(log.end)
		c.Logger = log
	}
	server, _, err := dispatcher.NewServer(c)
	if err != nil {
		tb.Fatalf("dispatchertest: create a server: %v", err)
		return nil
	}
	tb.Cleanup(server.Close) // before log.end
	return server
}

func (k *Kit) finish(e dispatcher.FinishEvent) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.finished = append(k.finished, e)
}

func (k *Kit) workerStarted(e dispatcher.WorkerEvent) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.serving[e]++
}

func (k *Kit) workerStopped(e dispatcher.WorkerEvent) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.serving[e]--; k.serving[e] == 0 {
		delete(k.serving, e)
	}
	if k.stopped != nil {
		close(k.stopped)
		k.stopped = nil
	}
}
