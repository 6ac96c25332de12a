package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// farAway is a broker behind a link that can be down.
type farAway struct {
	*memory.Broker
	down atomic.Bool
}

func (b *farAway) Open(ctx context.Context) (broker.Session, error) {
	if b.down.Load() {
		return nil, errors.New("no route to host")
	}
	return b.Broker.Open(ctx)
}

// With an outbox, a program can publish while its broker is out of reach.
func ExampleServerConfig_outbox() {
	link := &farAway{Broker: memory.New()}
	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
		Broker: link, Exchange: "app", DefaultRoutingKey: "mail", Logger: quiet, ReconnectionRetriesForever: true,
		Outbox: dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{MaxEntries: 1000}),
	})
	if err != nil {
		panic(err)
	}
	defer server.Close()
	sent := make(chan string)
	run(server, map[string]dispatcher.TaskConfig{"send": {Function: func(to string) { sent <- to }}})

	link.down.Store(true)
	link.KillSessions()
	switch err := server.Publish(dispatcher.NewTask("send", "ann@example.org")); {
	case err == nil:
		fmt.Println("confirmed, and in a queue")
	case errors.Is(err, dispatcher.ErrInOutbox):
		fmt.Println("kept; do not publish again")
	case errors.Is(err, dispatcher.ErrOutboxFull):
		fmt.Println("no room: not sent, and not kept")
	}

	link.down.Store(false)
	fmt.Println("sent to", <-sent)
	// Output:
	// kept; do not publish again
	// sent to ann@example.org
}
