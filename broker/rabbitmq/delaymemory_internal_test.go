package rabbitmq

import (
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// A binding is made again when it is old or in doubt. Only one caller renews an old binding.
func TestBindingsForRetriesAreRenewed(t *testing.T) {
	t.Parallel()
	var m memory
	now := time.Now()
	needs := func(after time.Duration, want, wantOld bool) {
		t.Helper()
		if needed, old := m.needsBinding("q", now.Add(after)); needed != want || old != wantOld {
			t.Errorf("after %v: needed %t, old %t; want %t, %t", after, needed, old, want, wantOld)
		}
	}
	needs(0, true, false)
	m.noteBound("q", target{"x", "k"}.word())
	needs(0, true, false) // it is bound for something else
	m.noteBound("q", target{key: "q"}.word())
	needs(0, false, false)
	needs(bindingAge+time.Minute, true, true)
	needs(bindingAge+time.Minute, false, false) // another caller is making it
	m.noteBound("q", target{key: "q"}.word())
	m.doubt("q")
	needs(0, true, false)
	m.noteBound("q", target{key: "q"}.word())
	m.base.run = &run{}
	m.forgetBase(&run{}) // the base was made again in the meantime
	needs(0, false, false)
	m.forgetBase(m.base.run)
	needs(0, true, false)
	if words := m.forgetBindings("q"); len(words) != 2 {
		t.Errorf("bound for %q", words)
	}
	needs(0, true, false)
}

// Ephemeral queues have new names every time, and the memory outlives their sessions. So it must not grow without
// limit.
func TestMemoryOfBindingsIsBounded(t *testing.T) {
	t.Parallel()
	var m memory
	for i := range 3*maxBound + 1 {
		m.noteBound(strconv.Itoa(i), "word")
	}
	if n := len(m.bound); n < 1 || n > maxBound {
		t.Errorf("%d queues are remembered, want at most %d", n, maxBound)
	}
}

// If a session ends in the middle of an errand, the next session takes it over. Once a session has done it, nothing is
// left to do.
func TestErrandIsDoneOnceForAllSessions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var e errand
		var runs int
		end := make(chan error)
		work := func() error { runs++; return <-end }
		results := make(chan error, 2)
		do := func(s *session) { _, err := e.do(t.Context(), s, work); results <- err }
		first, second := &session{dead: make(chan struct{})}, &session{dead: make(chan struct{})}
		go do(first)
		synctest.Wait()
		go do(second)
		synctest.Wait()
		end <- errClosed
		if err := <-results; err != errClosed {
			t.Errorf("the first session's outcome: %v", err)
		}
		end <- nil
		if err := <-results; err != nil {
			t.Errorf("the second session's outcome: %v", err)
		}
		do(&session{dead: make(chan struct{})})
		if err := <-results; err != nil || runs != 2 {
			t.Errorf("after %d runs: %v", runs, err)
		}
	})
}

// RabbitMQ certainly ignores the messages behind one to a deleted level. They must not be written to the next channel
// before the level is made again. Otherwise they would end that channel too, and be in doubt.
func TestEndOfAChannelOverADeletedLevelForgetsTheLevels(t *testing.T) {
	t.Parallel()
	made := &run{}
	var m memory
	m.levels.run = made
	p := &publisher{s: &session{delays: delays{memory: &m}}, exchanges: make(map[string]*scouting)}
	pt := &p.ports[delayPort]
	pt.p, pt.writing = p, newTurn()
	pp := &pipe{port: pt, byName: make(map[name]*flight)}
	outcomes := make([]chan error, 4)
	c := &caller{p: p, done: func(i int, err error) { outcomes[i] <- err }}
	c.open.Store(5)
	put := func(i int, exchange string, held bool) *flight {
		f := &flight{caller: c, i: i, exchange: exchange, delay: &delay{held: held, levels: made}, quota: &quota{used: 2}}
		outcomes[i] = make(chan error, 1)
		pp.put(f, time.Now())
		return f
	}
	put(0, levelName(6), true)
	put(1, levelName(6), true)
	put(2, levelName(5), true)
	due := put(3, "", false)
	c.gone = true // so the third one is not written again
	again := pt.bury(pp, &amqp.Error{Code: amqp.NotFound, Reason: "NOT_FOUND - no exchange '" + levelName(6) + "' in vhost '/'", Server: true})
	if m.levels.run != nil {
		t.Error("the levels are still remembered as existing")
	}
	for i := range 2 {
		if err := <-outcomes[i]; !errors.Is(err, broker.ErrUnconfirmed) {
			t.Errorf("message %d, which may be in a level: %v", i, err)
		}
	}
	if err := <-outcomes[2]; err != errReturned {
		t.Errorf("the message that was to wait for the levels: %v", err)
	}
	if len(again) != 1 || again[0] != due {
		t.Errorf("%d messages are written again, want the one that is due", len(again))
	}
}
