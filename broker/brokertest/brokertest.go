// Package brokertest checks that a broker satisfies the contract of package broker, and breaks brokers for the tests of
// the code above it.
//
// [Run] is the conformance suite. Every broker passes it, so the code above works with any broker. Each area of the
// contract is a file and a subtest, and each behaviour is a subtest of its area. The suite is itself tested with
// brokers that are broken on purpose (broken_test.go). Each must be caught in the area that is meant to catch it.
//
// [Chaos] wraps a healthy broker and makes it fail on demand.
//
// # How the suite waits
//
// The contract promises few immediate effects, and a broker behind a network has none. A test therefore waits for
// expected events up to a generous deadline. It never sleeps to see that nothing comes. Instead it causes an event that
// can only happen later (a marker at the end of the queue, or another consumer that receives the rest) and checks what
// came before. A delayed message may be late but never early. If a test is too slow to act before a message is due, it
// tries again with more time.
//
// All tests that run on one broker share one queue, [broker.Undeliverable]. They take only their own messages from it
// and give back the rest.
package brokertest

import (
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Harness makes and breaks one kind of broker for the suite.
type Harness struct {
	// New returns a broker that is ready to be opened. It is called once for every test. Tests may share the server
	// behind it, since each uses names of its own. They must not share the value, since Kill cuts all of its sessions.
	New func(tb testing.TB) broker.Broker

	// Kill cuts every live session of b, as a lost link would. It need not wait until the sessions notice.
	Kill func(tb testing.TB, b broker.Broker)

	// Restart stops the server behind b and starts it again. It returns when the server starts or has started. The
	// tests that use it run alone, before the others. If it is nil, that area is skipped.
	Restart func(tb testing.TB, b broker.Broker)
}

// areas are the parts of the suite. A test checks that each of them catches a broken broker.
var areas = []struct {
	name  string
	cases func(a *area)
}{
	{"restart", testRestart}, // alone and first, since it ends all sessions
	{"publish", testPublish},
	{"topology", testTopology},
	{"settle", testSettle},
	{"retry", testRetry},
	{"delay", testDelay},
	{"expiry", testExpiry},
	{"suspect", testSuspect},
	{"deadletter", testDeadLetter},
	{"order", testOrder},
	{"prefetch", testPrefetch},
	{"stop", testStop},
	{"loss", testLoss},
	{"crash", testCrash},
	{"fencing", testFencing},
	{"pull", testPull},
	{"inspect", testInspect},
	{"session", testSession},
	{"ephemeral", testEphemeral},
	{"fanout", testFanout},
}

// Run checks the broker of h against the contract, with one subtest per area. It deletes the queues that it made. It
// leaves exchanges, because a broker.Session cannot delete them, the queue [broker.Undeliverable] and, if the broker
// has delays, one message that is due in 300 days.
func Run(t *testing.T, h Harness) {
	for _, ar := range areas {
		t.Run(ar.name, func(t *testing.T) {
			alone := ar.name == "restart"
			if !alone {
				t.Parallel()
			}
			if alone && h.Restart == nil {
				t.Skip("broker has no restart")
			}
			ar.cases(&area{t: t, h: h, alone: alone})
		})
	}
}

// area collects the tests of one area.
type area struct {
	t     *testing.T
	h     Harness
	alone bool // its tests run one after the other
}

// test runs one test with a broker and a session of its own.
func (a *area) test(name string, f func(k *kit)) {
	a.t.Run(name, func(t *testing.T) {
		if !a.alone {
			t.Parallel()
		}
		f(newKit(t, a.h))
	})
}
