// Package brokertest checks that a broker keeps the contract of package broker, and breaks brokers for the tests above it.
//
// [Run] is the conformance suite: every broker passes it, so code above the seam needs to know no broker. Each area of the
// contract is a file and a subtest, each behaviour a subtest of its area. The suite itself is tested with brokers that are
// broken on purpose (broken_test.go): each must be caught, in the area that is meant to catch it.
//
// [Chaos] wraps a healthy broker and makes it fail on demand.
//
// # How the suite waits
//
// The contract promises few effects at once, and a broker behind a network gives none. So a test waits for what must come, up
// to a generous deadline, and never sleeps to see that nothing comes: it makes something happen that can only happen after
// (a marker at the end of the queue, or another consumer that receives the rest) and looks at what came before it. A delayed
// message may be late and never early, and what has to be done before it is due is done again with more time if it was not.
//
// The tests of a server share one queue, [broker.Undeliverable]: they take only their own messages from it and give back the rest.
package brokertest

import (
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Harness tells the suite how to make and hurt one kind of broker.
type Harness struct {
	// New returns a broker that is ready to be opened. It is called once for every test. The server behind it may be shared
	// (every test uses names of its own), the value must not be, since Kill hits all of its sessions.
	New func(tb testing.TB) broker.Broker

	// Kill cuts every live session of b, as a lost link would. It need not wait until they have noticed.
	Kill func(tb testing.TB, b broker.Broker)

	// Restart stops the server behind b and starts it again; it returns when the server starts or has started. The tests that
	// use it run alone, before the others. nil = not possible, that area is skipped.
	Restart func(tb testing.TB, b broker.Broker)
}

// areas is the suite. A test holds every one of them to a broken broker that it catches.
var areas = []struct {
	name  string
	cases func(a *area)
}{
	{"restart", testRestart}, // alone and first, since it ends the sessions of everybody
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

// Run checks the broker of h against the contract, one subtest an area. It deletes the queues that it made; what stays is
// exchanges, because the seam cannot delete them, the queue [broker.Undeliverable], and of a broker with delays one message that is
// due in 300 days.
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
