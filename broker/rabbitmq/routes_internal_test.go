package rabbitmq

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// A thousand returned messages cause one query to RabbitMQ.
func TestUnroutableMessagesAskOnceASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var r routes
		r.add(target{"e", "k"}, "q")
		r.add(target{"e", "k"}, "q")
		first, queues := r.ask(target{"e", "k"})
		if len(queues) != 1 {
			t.Fatalf("asks %v, want one queue", queues)
		}
		for range 1000 {
			if a, queues := r.ask(target{"e", "k"}); a != first || queues != nil {
				t.Fatalf("asks %v again", queues)
			}
		}
		first.until = time.Now().Add(routeFresh)
		close(first.over)
		<-time.After(routeFresh)
		if _, queues := r.ask(target{"e", "k"}); queues != nil {
			t.Error("asks again within a second")
		}
		<-time.After(time.Millisecond)
		if _, queues := r.ask(target{"e", "k"}); len(queues) != 1 {
			t.Error("never asks again")
		}
	})
}

func TestRoutesAreBounded(t *testing.T) {
	t.Parallel()
	var r routes
	for i := range 2 * maxRoutes {
		r.add(target{"e", strconv.Itoa(i)}, "q")
	}
	if len(r.queues) != maxRoutes {
		t.Errorf("%d bindings are known, want %d", len(r.queues), maxRoutes)
	}
	for i := range 5000 {
		a, _ := r.ask(target{"", strconv.Itoa(i)})
		close(a.over) // answered long ago
	}
	if len(r.asked) > manyAsked {
		t.Errorf("%d stale answers are kept", len(r.asked))
	}
}

// These are the texts of RabbitMQ 3.10 to 4.1.
func TestAbsentQueuesAreToldFromMissingOnes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"NOT_FOUND - home node 'rabbit@b' of durable queue 'q' in vhost '/' is down or inaccessible":                                     true,
		"NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor":                                                            true,
		"NOT_FOUND - queue 'q' in vhost '/' has crashed and failed to restart":                                                           true,
		"NOT_FOUND - failed to perform operation on queue 'q' in vhost '/' due to timeout":                                               true,
		"NOT_FOUND - failed to perform operation on queue 'q' in vhost '/': its master replica <0.1.2> may be stopping or being demoted": true,
		"NOT_FOUND - failed to perform operation on queue 'q' in vhost '/': its leader <0.1.2> may be stopping or being demoted":         true,
		"NOT_FOUND - no queue 'q' in vhost '/'":                                                                                          false,
		"NOT_FOUND - no exchange 'e' in vhost '/'":                                                                                       false,
		"NOT_FOUND - no queue 'which is down or inaccessible due to timeout' in vhost '/'":                                               false,
	} {
		if got := absent(&amqp.Error{Code: amqp.NotFound, Reason: text, Server: true}); got != want {
			t.Errorf("%s: absent %t, want %t", text, got, want)
		}
	}
}
