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

// newBroker returns the embedded broker or, if there is a URL, RabbitMQ with a queue of this run's own. remove deletes
// that queue.
func newBroker(url string) (b broker.Broker, queue string, remove func() error, err error) {
	if url == "" {
		return memory.New(), "pages", func() error { return nil }, nil
	}
	b, err = rabbitmq.New(rabbitmq.Config{URLs: []string{url}, ConnectionName: "dispatcher retry"})
	queue = "dispatcher.retry." + rand.Text()
	return b, queue, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		session, err := b.Open(ctx)
		if err != nil {
			return err
		}
		for _, suffix := range []string{"", broker.DeadSuffix, broker.SuspectsSuffix} {
			err = errors.Join(err, session.Delete(ctx, queue+suffix))
		}
		return errors.Join(err, session.Close(ctx))
	}, err
}
