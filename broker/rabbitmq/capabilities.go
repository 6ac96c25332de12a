package rabbitmq

import (
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// version is a version of RabbitMQ. The part after the numbers, as in 4.1.0-rc.1, does not matter.
type version struct{ major, minor, patch int }

func (v version) atLeast(w version) bool {
	if v.major != w.major {
		return v.major > w.major
	}
	if v.minor != w.minor {
		return v.minor > w.minor
	}
	return v.patch >= w.patch
}

// capabilitiesOf returns the capabilities of a server, given the properties that it announces. Other brokers speak AMQP
// too and silently accept every argument, so only the name and the version show whether an argument has a meaning to
// them. queueType is the type of the session's queues.
func capabilitiesOf(server amqp.Table, queueType string) broker.Capabilities {
	can := broker.Capabilities{Fanout: true, Ephemeral: true}
	text, _ := server["version"].(string)
	var v version
	if n, _ := fmt.Sscanf(text, "%d.%d.%d", &v.major, &v.minor, &v.patch); n < 2 || server["product"] != "RabbitMQ" {
		return can
	}
	can.Delay = v.atLeast(version{3, 10, 0})
	can.KeepsPlace = queueType != quorum // a quorum queue keeps returned messages in a list
	// The timeout was 15 minutes for two versions, and did not exist before. From 4.3 on classic queues have none.
	if v.atLeast(version{3, 8, 17}) && (queueType == quorum || !v.atLeast(version{4, 3, 0})) {
		can.ConsumerTimeout = 30 * time.Minute
	}
	return can
}
