package dispatcher

import (
	"strings"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// defaultAMQP is RabbitMQ's default address. Its user guest may connect from the same machine only.
const defaultAMQP = "amqp://guest:guest@localhost:5672/"

// newRabbitMQ returns the default broker, made from the AMQP fields. Its errors show no credentials.
func newRabbitMQ(c *ServerConfig) (broker.Broker, error) {
	urls := splitURLs(c.AMQPConnectionString)
	if c.SecureConnection || c.TLSConfig != nil {
		for i, u := range urls {
			// gofort/dispatcher changed the scheme too, and skipped the verification of certificates. Here only the
			// user's own tls.Config can skip it.
			if rest, ok := strings.CutPrefix(u, "amqp://"); ok {
				urls[i] = "amqps://" + rest
			}
		}
	}
	return rabbitmq.New(rabbitmq.Config{
		URLs:           urls,
		TLS:            c.TLSConfig,
		ConnectionName: c.ConnectionName,
		QueueType:      c.QueueType,
	})
}

// splitURLs splits a list of URLs at the commas that begin a new one, since a password may hold a comma.
func splitURLs(list string) []string {
	if list == "" {
		return []string{defaultAMQP}
	}
	var urls []string
	for part := range strings.SplitSeq(list, ",") {
		trimmed := strings.TrimSpace(part)
		begins := strings.HasPrefix(trimmed, "amqp://") || strings.HasPrefix(trimmed, "amqps://")
		if begins || len(urls) == 0 {
			urls = append(urls, trimmed)
			continue
		}
		urls[len(urls)-1] += "," + part
	}
	return urls
}
