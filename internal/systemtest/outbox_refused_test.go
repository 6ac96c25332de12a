package systemtest_test

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

func TestARefusedEntryIsKeptAsDeadAndBlocksNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []dispatcher.PublishEvent
		outbox := dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{MaxEntries: 6})
		r := newRig(t, withQueues(2), func(c *dispatcher.ServerConfig) {
			c.Outbox = outbox
			c.Hooks.OutboxRefused = func(e dispatcher.PublishEvent) {
				mu.Lock()
				told = append(told, e)
				mu.Unlock()
				panic("a hook that panics harms nobody")
			}
			c.Hooks.Published = func(dispatcher.PublishEvent) { panic("nor this one") }
		}, script(func(m broker.Message) error {
			switch m.ID {
			case "bad":
				return fmt.Errorf("not today: %w", broker.ErrRejected)
			case "odd":
				return fmt.Errorf("delayed: %w", errors.ErrUnsupported)
			}
			return nil
		}))
		down(r, true)
		for _, id := range []string{"1", "bad", "odd", "2"} {
			kept(t, id, r.server.Publish(named(id, "k0")))
		}
		kept(t, "unroutable", r.server.Publish(named("lost", "nowhere")))
		kept(t, "other key", r.server.Publish(named("3", "k1")))
		up(r)
		drained(t, r)
		if got := strings.Join(r.ids("k0"), " ") + "|" + strings.Join(r.ids("k1"), " "); got != "1 2|3" {
			t.Errorf("got %s", got)
		}
		if h := r.server.Health(t.Context()); h.Outbox != (dispatcher.OutboxHealth{Dead: 3}) || !h.OK() {
			t.Errorf("health %+v", h)
		}
		if s := r.server.Stats(); s.OutboxDead != 3 || s.Published != 3 || s.Outboxed != 6 || s.Rejected != 0 {
			t.Errorf("stats %+v", s)
		}
		reasons := map[string]string{"bad": "not today", "odd": "unsupported", "lost": "no queue is bound to this routing key: bind one"}
		mu.Lock()
		for _, e := range told {
			if reasons[e.UUID] == "" || e.Err == nil {
				t.Errorf("unexpected OutboxRefused event %+v", e)
			}
		}
		if len(told) != 3 {
			t.Errorf("%d OutboxRefused events, want 3", len(told))
		}
		mu.Unlock()

		// Dead entries take room until someone takes them out.
		down(r, true)
		for i := range 3 {
			kept(t, "room is left", r.server.Publish(named(fmt.Sprint("room", i), "k0")))
		}
		outcome(t, "no room is left", r.server.Publish(named("x", "k0")), dispatcher.ErrOutboxFull)
		if n := len(outbox.Dead()); n != 3 {
			t.Errorf("%d dead entries, want 3", n)
		}
		for _, e := range outbox.TakeDead() {
			if !strings.Contains(e.Refused, reasons[e.UUID]) || e.RefusedAt.IsZero() || e.Name != "n" || len(e.Body) == 0 {
				t.Errorf("dead entry %+v", e)
			}
		}
		if n := len(outbox.Dead()) + len(outbox.TakeDead()); n != 0 {
			t.Errorf("%d dead entries after they were taken", n)
		}
		kept(t, "room again", r.server.Publish(named("x", "k0")))
		up(r)
		drained(t, r)
		if log := r.log.String(); strings.Count(log, "kept as a dead entry") != 3 {
			t.Errorf("the log does not report each dead entry once: %s", log)
		}
	})
}

func TestAnEntryThatALivingConnectionDidNotTakeIsSentThroughItLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var refusals atomic.Int64
		r := newRig(t, withQueue, plainOutbox, script(func(broker.Message) error {
			switch refusals.Add(1) {
			case 1:
				return broker.ErrNotSent
			case 2:
				return broker.ErrUnconfirmed
			case 3:
				return errors.New("a broker that does not say")
			}
			return nil
		}))
		down(r, true)
		kept(t, "publish", r.server.Publish(named("1", "jobs")))
		up(r)
		drained(t, r)
		if s := r.server.Stats(); s.Published != 1 || s.Reconnects != 1 || refusals.Load() != 4 {
			t.Errorf("stats %+v, sent %d times", s, refusals.Load())
		}
	})
}

// When RabbitMQ closes the channel because of one message, it ends the session of all others.
func TestAnEntryThatEndsItsConnectionIsPaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var r *rig
		var ended atomic.Int64
		r = newRig(t, withQueues(2), plainOutbox, func(c *dispatcher.ServerConfig) { c.ReconnectionIntervalSeconds = 0 }, script(func(m broker.Message) error {
			if m.ID == "poison" {
				ended.Add(1)
				r.chaos.Kill()
				return broker.ErrUnconfirmed
			}
			return nil
		}))
		down(r, true)
		kept(t, "publish", r.server.Publish(named("poison", "k0")))
		kept(t, "publish", r.server.Publish(named("good", "k1")))
		up(r)
		<-time.After(10 * time.Minute)
		if n := ended.Load(); n < 10 || n > 60 {
			t.Errorf("%d connections ended in ten minutes, want 10 to 60", n)
		}
		if got := strings.Join(r.ids("k1"), " "); got != "good" {
			t.Errorf("messages of the other key: %s", got)
		}
	})
}

var errEnded = fmt.Errorf("%w: %w: %w", broker.ErrUnconfirmed, broker.ErrSessionLost, broker.ErrProtocol)

// The broker repeatedly ends the link because of one entry, while others are in flight. That entry is buried, and the
// others arrive.
func TestAnEntryThatEndsTheLinkIsBuriedAndTheOthersAreNot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 10
		var poisons, together atomic.Int64
		ending := make(chan struct{}) // closed when the first link ends
		r := newRig(t, withQueues(n), plainOutbox, script(func(m broker.Message) error {
			if m.ID == "poison" {
				if poisons.Add(1) == 1 {
					synctest.Wait() // the others are in flight
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
			t.Error("no other entry was in flight with it")
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
			t.Errorf("the two poison entries were sent %d times in all, want 5 each", got)
		}
		if text := r.log.String(); !strings.Contains(text, "ended the connection 5 times") {
			t.Errorf("log: %s", text)
		}
	})
}

// The broker repeatedly ends the link because of two entries, and takes two seconds to confirm any other. All were in
// flight when the link first ended, so all are suspects. The others are confirmed only because suspects are sent one at
// a time.
func TestSuspectEntriesGoOneAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 10
		var mu sync.Mutex
		link := make(chan struct{}) // closed when the link ends
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
			<-time.After(50 * time.Millisecond) // the others are in flight
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
			t.Errorf("%d entries were buried, want the two that end the link", h.Outbox.Dead)
		}
	})
}

// A lost link is no evidence against the entries in flight.
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

func TestADeadEntryThatIsRetriedIsSentByTheRunningServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		outbox := dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})
		refuse := true
		r := newRig(t, withQueue, func(c *dispatcher.ServerConfig) { c.Outbox = outbox }, script(func(broker.Message) error {
			if refuse {
				return broker.ErrRejected
			}
			return nil
		}))
		down(r, true)
		kept(t, "publish", r.server.Publish(named("1", "jobs")))
		kept(t, "publish", r.server.Publish(named("2", "jobs")))
		up(r)
		drained(t, r)
		synctest.Wait()
		refuse = false
		dead := outbox.Dead()
		if len(dead) != 2 {
			t.Fatalf("dead %+v", dead)
		}
		if !outbox.RetryDead(dead[1]) || outbox.RetryDead(dead[1]) || !outbox.RemoveDead(dead[0]) || outbox.RemoveDead(dead[0]) {
			t.Error("RetryDead and RemoveDead must each find their entry exactly once")
		}
		drained(t, r)
		if got := strings.Join(r.ids("jobs"), " "); got != "2" {
			t.Errorf("got %s", got)
		}
		if n := len(outbox.Dead()); n != 0 {
			t.Errorf("%d dead entries", n)
		}
	})
}
