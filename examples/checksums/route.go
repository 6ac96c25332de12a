package main

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// route is the broker and queue of the tasks.
type route struct {
	broker broker.Broker
	queue  string
	shared bool // the broker outlives this program
}

// newRoute returns the embedded broker, or RabbitMQ if there is a URL. In RabbitMQ each run has a queue of its own: two
// runs at the same time must not take each other's tasks, since each process keeps the results of its tasks.
func newRoute(url string) (route, error) {
	if url == "" {
		return route{broker: memory.New(), queue: taskName}, nil
	}
	b, err := rabbitmq.New(rabbitmq.Config{URLs: []string{url}, ConnectionName: "dispatcher checksums"})
	return route{broker: b, queue: "dispatcher.checksums." + rand.Text(), shared: true}, err
}

// remove deletes the queues of this run from a broker that others use. The exchange stays for the next run.
func (r route) remove() error {
	if !r.shared {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	session, err := r.broker.Open(ctx)
	if err != nil {
		return err
	}
	for _, suffix := range []string{"", broker.DeadSuffix, broker.SuspectsSuffix} {
		err = errors.Join(err, session.Delete(ctx, r.queue+suffix))
	}
	return errors.Join(err, session.Close(ctx))
}
