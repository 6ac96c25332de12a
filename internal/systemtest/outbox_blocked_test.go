package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

func TestABlockedBrokerSendsTasksToTheOutbox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, plainOutbox)
		r.chaos.Block(true)
		began := time.Now()
		kept(t, "blocked", r.server.Publish(named("1", "jobs")))
		kept(t, "blocked", r.server.PublishContext(t.Context(), named("2", "jobs")))
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
		<-time.After(time.Hour)
		if n := r.server.Health(t.Context()).Outbox.Entries; n != 2 {
			t.Errorf("%d entries", n)
		}
		r.chaos.Block(false)
		drained(t, r)
		if got := strings.Join(r.ids("jobs"), " "); got != "1 2" {
			t.Errorf("got %s", got)
		}
	})
}

func TestABrokerThatBlocksDuringAPublishSendsItToTheOutbox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, plainOutbox, script(nil)) // it does not report that it blocks
		r.chaos.Block(true)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := r.server.PublishContext(ctx, named("gone", "jobs"))
		outcome(t, "own context", err, dispatcher.ErrNotSent)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
		began = time.Now()
		errs := r.server.PublishBatch(t.Context(), []*dispatcher.Task{named("1", "jobs"), named("2", "jobs")})
		kept(t, "batch", errs[0])
		kept(t, "batch", errs[1])
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("took %v", took)
		}
		began = time.Now()
		kept(t, "the key has entries now", r.server.Publish(named("3", "jobs")))
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
		r.chaos.Block(false)
		drained(t, r)
		if got := strings.Join(r.ids("jobs"), " "); got != "1 2 3" {
			t.Errorf("got %s", got)
		}
	})
}

// A nack means that a queue is full or its node is away. The entries wait, and are sent in order when that is over.
func TestEntriesThatAreNackedAreKeptAndSentAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		var tries atomic.Int64
		r := newRig(t, withQueues(2), plainOutbox, script(func(m broker.Message) error {
			if away.Load() && m.RoutingKey == "k0" {
				tries.Add(1)
				return fmt.Errorf("by the test: %w", broker.ErrNacked)
			}
			return nil
		}))
		down(r, true)
		const n = 65
		var want []string
		for i := range n {
			want = append(want, fmt.Sprintf("%02d", i))
			kept(t, "publish", r.server.Publish(named(want[i], "k0")))
		}
		kept(t, "other key", r.server.Publish(named("other", "k1")))
		away.Store(true)
		up(r)
		<-time.After(time.Hour)
		if h := r.server.Health(t.Context()); h.Outbox.Entries != n || h.Outbox.Dead != 0 {
			t.Errorf("health %+v", h)
		}
		if got := r.ids("k1"); len(got) != 1 {
			t.Errorf("the queue of the other key has %q", got)
		}
		if n := tries.Load(); n < 100 || n > 300 {
			t.Errorf("%d tries in an hour, want pauses up to half a minute", n)
		}
		away.Store(false)
		drained(t, r)
		if got := r.ids("k0"); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("got %q", got)
		}
		if s := r.server.Stats(); s.OutboxDead != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

// A nacked direct publish may have reached a queue. It is therefore neither kept in the outbox nor reported as refused.
func TestAPublishThatIsNackedIsUnconfirmed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for name, edit := range map[string]func(*dispatcher.ServerConfig){"without": func(*dispatcher.ServerConfig) {}, "with": plainOutbox} {
			r := newRig(t, withQueue, edit, script(func(broker.Message) error { return broker.ErrNacked }))
			err := r.server.Publish(named("m", "jobs"))
			outcome(t, name+" an outbox", err, dispatcher.ErrUnconfirmed)
			if !errors.Is(err, dispatcher.ErrNacked) {
				t.Errorf("%s an outbox: %v", name, err)
			}
			if s := r.server.Stats(); s.Unconfirmed != 1 || s.Rejected != 0 {
				t.Errorf("stats %+v", s)
			}
		}
	})
}

func TestHealthShowsUnansweredPublishesAndStaysOK(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withQueue, script(nil), func(c *dispatcher.ServerConfig) { c.Broker.(*scripted).unanswered = 7 })
		if h := r.server.Health(t.Context()); h.Unanswered != 7 || !h.OK() {
			t.Errorf("health %+v", h)
		}
	})
}

// A carrier waits for its answer as long as the session lives. Queues that do not answer must not occupy all carriers.
func TestKeysWhoseQueueDoesNotAnswerHoldUpNoOtherKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const silent = 200
		var sent atomic.Int64
		r := newRig(t, withQueues(silent+1), plainOutbox, script(func(m broker.Message) error {
			if m.RoutingKey == "k0" {
				return nil
			}
			sent.Add(1)
			return errSilent
		}))
		down(r, true)
		for i := range silent {
			kept(t, "silent", r.server.Publish(named("m", fmt.Sprint("k", i+1))))
		}
		kept(t, "healthy", r.server.Publish(named("m", "k0")))
		up(r)
		eventuallyWithin(t, time.Hour, "the healthy key is served", func() bool { return r.server.Health(t.Context()).Outbox.Entries == silent })
		<-time.After(time.Hour)
		if n := sent.Load(); n != silent {
			t.Errorf("%d messages to %d silent keys: an entry that may have arrived must not be sent again", n, silent)
		}
	})
}
