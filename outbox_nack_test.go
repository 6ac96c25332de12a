package dispatcher_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// A nack says that a queue is full or its node is away. Entries wait, and are sent in their order when that is over.
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
			t.Errorf("the other key has %q", got)
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

// A direct publish that was nacked may have reached a queue, so it is neither kept nor called refused.
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

var errEnded = fmt.Errorf("%w: %w: %w", broker.ErrUnconfirmed, broker.ErrSessionLost, broker.ErrProtocol)

// The broker ends the link over one entry, each time with others under way beside it: the one is buried, the others arrive.
func TestAnEntryThatEndsTheLinkIsBuriedAndTheOthersAreNot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 10
		var poisons, together atomic.Int64
		ending := make(chan struct{}) // closed when the first link ends
		r := newRig(t, withQueues(n), plainOutbox, script(func(m broker.Message) error {
			if m.ID == "poison" {
				if poisons.Add(1) == 1 {
					synctest.Wait() // the others are under way
					close(ending)
				}
				return errEnded
			}
			select {
			case <-ending:
				return nil
			default:
			}
			<-ending
			together.Add(1)
			return errEnded
		}))
		down(r, true)
		for i := range n {
			kept(t, "publish", r.server.Publish(named(fmt.Sprint(i), fmt.Sprint("k", i))))
		}
		kept(t, "poison", r.server.Publish(named("poison", "k0")))
		kept(t, "behind it", r.server.Publish(named("behind", "k0")))
		kept(t, "poison", r.server.Publish(named("poison", "nowhere")))
		up(r)
		drained(t, r)
		if together.Load() == 0 {
			t.Error("nothing was under way beside it")
		}
		for i := range n {
			want := fmt.Sprint(i)
			if i == 0 {
				want = "0 behind"
			}
			if got := strings.Join(r.ids(fmt.Sprint("k", i)), " "); got != want {
				t.Errorf("key %d: %s", i, got)
			}
		}
		if h := r.server.Health(t.Context()); h.Outbox != (dispatcher.OutboxHealth{Dead: 2}) {
			t.Errorf("health %+v", h)
		}
		if got := poisons.Load(); got != 10 {
			t.Errorf("two poisons were sent %d times, want 5 each", got)
		}
		if text := r.log.String(); !strings.Contains(text, "ended the link 5 times") {
			t.Errorf("log: %s", text)
		}
	})
}

// The broker ends the link over two entries, again and again, and takes two seconds to confirm any other. All were under way the first
// time, so all are suspects, and others than the two are confirmed only because suspects go one at a time.
func TestSuspectEntriesGoOneAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 10
		var mu sync.Mutex
		link := make(chan struct{}) // closed when it ends
		r := newRig(t, withQueues(n), plainOutbox, script(func(m broker.Message) error {
			mu.Lock()
			ended := link
			mu.Unlock()
			if m.ID != "poison" {
				select {
				case <-ended:
					return errEnded
				case <-time.After(2 * time.Second):
					return nil
				}
			}
			<-time.After(50 * time.Millisecond) // the others are under way
			mu.Lock()
			close(link)
			link = make(chan struct{})
			mu.Unlock()
			return errEnded
		}))
		down(r, true)
		for i := range n {
			kept(t, "publish", r.server.Publish(named(fmt.Sprint(i), fmt.Sprint("k", i))))
		}
		kept(t, "poison", r.server.Publish(named("poison", "x")))
		kept(t, "poison", r.server.Publish(named("poison", "y")))
		up(r)
		drained(t, r)
		if h := r.server.Health(t.Context()); h.Outbox.Dead != 2 {
			t.Errorf("%d entries are buried, want the two that end the link", h.Outbox.Dead)
		}
	})
}

// A lost link says nothing about what was under way.
func TestLostLinksBuryNoEntry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		r := newRig(t, withQueue, plainOutbox, script(func(broker.Message) error {
			if tries.Add(1) <= 100 {
				return fmt.Errorf("%w: %w", broker.ErrUnconfirmed, broker.ErrSessionLost)
			}
			return nil
		}))
		down(r, true)
		kept(t, "publish", r.server.Publish(named("m", "jobs")))
		up(r)
		drained(t, r)
		if h := r.server.Health(t.Context()); h.Outbox.Dead != 0 || tries.Load() != 101 {
			t.Errorf("%d tries, health %+v", tries.Load(), h)
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

// A carrier waits for its answer as long as the session lives. Queues that do not answer must not have all of them.
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
			t.Errorf("%d messages to %d silent keys: what may be there must not be sent again", n, silent)
		}
	})
}

// Somebody has deleted the exchange. It is declared again, so an entry waits for that.
func TestAnEntryWhoseExchangeIsGoneIsSentAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var gone atomic.Int64
		r := newRig(t, withQueues(1), plainOutbox, script(func(broker.Message) error {
			if gone.Add(-1) >= 0 {
				return broker.ErrExchangeGone
			}
			return nil
		}))
		down(r, true)
		for _, id := range []string{"1", "2"} {
			kept(t, id, r.server.Publish(named(id, "k0")))
		}
		gone.Store(3)
		up(r)
		drained(t, r)
		if got := r.ids("k0"); strings.Join(got, " ") != "1 2" {
			t.Errorf("got %q", got)
		}
		if s := r.server.Stats(); s.OutboxDead != 0 || s.Published != 2 {
			t.Errorf("stats %+v", s)
		}
		eventuallyOK(t, r)
	})
}
