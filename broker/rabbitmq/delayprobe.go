package rabbitmq

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// AMQP does not show overdue messages: a message that is due but not passed on is counted nowhere. So a session that
// delays messages sends probes to itself and measures when they arrive. A probe goes through the lower levels and one
// of the exits that the session's messages use.
const (
	probeEvery  = 30 * time.Second
	probeMargin = 10 * time.Second // a probe is late when it is overdue by more than this
	probeTicks  = 1<<6 - 1         // levels 5 to 10, 2 s: most delays use each of them
	probeMemory = 10 * time.Minute // how long a late probe or message may still arrive
	probeCall   = 5 * time.Second  // limits the sending of one round: no probe is received meanwhile

	// maxProbes is how many probes of one exit may be under way. Each may occupy one of the 32 places of an exit that
	// stands still.
	maxProbes = 4
)

// All probes also go to a queue that keeps nothing. Otherwise the probes of an ended session would be undeliverable. A
// session's own queue outlives the session for a while, since a message to a queue that is being deleted holds up its
// exit.
const (
	probeWord = "probe"
	probeSink = delayPrefix + probeWord
)

func sinkArguments() amqp.Table {
	args := quorumArguments()
	args["x-message-ttl"] = int64(1000)
	return args
}

func probeArguments() amqp.Table { return amqp.Table{"x-expires": int64(60_000)} }

// ofProbes reports whether a queue is the queue of a session's probes.
func ofProbes(queue string) bool { return strings.HasPrefix(queue, probeSink+".") }

// probeKey returns the routing key of a session's probes. The session's name comes after the words that levels and
// exits read.
func probeKey(exit, session string) string {
	return delayKey(probeTicks, probeWord, exit) + "." + session
}

// probePattern returns the key that binds a session's probes to its queue.
func probePattern(session string) string {
	return probeWord + strings.Repeat(".*", strings.Count(probeKey("", ""), ".")-1) + "." + session
}

// probe is a probe that has not arrived.
type probe struct {
	id  string
	due time.Time
}

// probes holds what a session knows about its probes. The zero value is ready.
type probes struct {
	every, margin time.Duration // 0 = probeEvery, probeMargin; set before first use
	begun         atomic.Bool

	mu   sync.Mutex
	last map[string]time.Time // by exit: when the last of the session's messages is due
	seq  int
	sent map[string][]probe // by exit: the oldest first
}

// use notes that a message goes to an exit.
func (p *probes) use(exit string, due time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil {
		p.last = make(map[string]time.Time)
	}
	if due.After(p.last[exit]) {
		p.last[exit] = due
	}
}

// next returns the exits to probe, with the ID of each probe. Those are the exits that the session's messages use, as
// long as these messages wait or may be late.
func (p *probes) next(now time.Time) map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := make(map[string]string)
	for exit, due := range p.last {
		p.keep(exit, slices.DeleteFunc(p.sent[exit], func(x probe) bool { return now.Sub(x.due) > probeMemory }))
		switch sent := p.sent[exit]; {
		case len(sent) == 0 && now.Sub(due) > probeMemory:
			delete(p.last, exit)
		case len(sent) < maxProbes:
			p.seq++
			ids[exit] = fmt.Sprintf("%s.%d", exit, p.seq)
		}
	}
	return ids
}

// keep replaces the probes of an exit that have not arrived. The caller holds mu.
func (p *probes) keep(exit string, sent []probe) {
	if len(sent) == 0 {
		delete(p.sent, exit)
		return
	}
	if p.sent == nil {
		p.sent = make(map[string][]probe)
	}
	p.sent[exit] = sent
}

// left notes that the broker has a probe.
func (p *probes) left(id string, due time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	exit, _, _ := strings.Cut(id, ".")
	p.keep(exit, append(p.sent[exit], probe{id, due}))
}

// came notes the arrival of a probe. Probes of the same exit that were sent before it no longer count: the exit works
// again.
func (p *probes) came(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	exit, _, _ := strings.Cut(id, ".")
	if i := slices.IndexFunc(p.sent[exit], func(x probe) bool { return x.id == id }); i >= 0 {
		p.keep(exit, p.sent[exit][i+1:])
	}
}

// late describes the exits that are late, and by how much at least. It returns "" if there are none.
func (p *probes) late(now time.Time) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	var most time.Duration
	for exit, sent := range p.sent {
		if by := now.Sub(sent[0].due); by > cmp.Or(p.margin, probeMargin) {
			names, most = append(names, exitName(exit)), max(most, by)
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return fmt.Sprintf("messages that were due %v ago are held up in the levels 5 to 10 or in %s",
		most.Truncate(time.Second), strings.Join(names, ", "))
}

// forget drops the probes that have not arrived: their queue is gone.
func (p *probes) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.sent)
}

// startProbes starts the probes, once. It is called when the session has delayed something.
func (s *session) startProbes() {
	if p := &s.delays.probes; p.begun.Load() || !p.begun.CompareAndSwap(false, true) || s.begin(&s.goroutines) != nil {
		return
	}
	go func() {
		defer s.goroutines.done()
		s.probe()
	}()
}

// probe sends and receives probes until the session is dead. If the user may not declare their queue, it sends none.
func (s *session) probe() {
	p := &s.delays.probes
	every := cmp.Or(p.every, probeEvery)
	tick := time.NewTicker(every)
	defer tick.Stop()
	var name string
	var arrivals <-chan broker.Delivery
	for {
		select {
		case <-s.dead:
			return
		case d, ok := <-arrivals:
			if !ok {
				arrivals = nil
				p.forget()
				continue
			}
			p.came(strings.TrimPrefix(d.ID, probeWord+"."))
			_ = d.Ack()
		case <-tick.C:
			ids := p.next(time.Now())
			if _, blocked := s.Blocked(); blocked || len(ids) == 0 {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), min(every, probeCall))
			if arrivals == nil {
				name = rand.Text()
				arrivals = s.awaitProbes(ctx, name)
			}
			if arrivals != nil {
				s.sendProbes(ctx, name, ids)
			}
			cancel()
		}
	}
}

// awaitProbes declares the queue of a session's probes and consumes it. Without the permissions for that it returns
// nil.
func (s *session) awaitProbes(ctx context.Context, name string) <-chan broker.Delivery {
	queue := probeSink + "." + name
	steps := []step{
		stepQueue(queue, probeArguments(), declareQueue),
		stepBind(queue, probePattern(name), deliverExchange),
	}
	if s.withBase(ctx, func() error { return s.inOneGo(ctx, bindTurn, steps) }) != nil {
		return nil
	}
	c, err := s.Consume(ctx, broker.ConsumeOptions{Queue: queue, Prefetch: len(exits) * maxProbes})
	if err != nil {
		return nil
	}
	return c.Deliveries()
}

func (s *session) sendProbes(ctx context.Context, name string, ids map[string]string) {
	for exit, id := range ids {
		m := broker.Message{
			ID:         probeWord + "." + id,
			Exchange:   levelName(firstLevel(probeTicks)),
			RoutingKey: probeKey(exit, name),
		}
		if s.publish.confirm(ctx, &m) == nil {
			s.delays.probes.left(id, time.Now().Add(exitTime+probeTicks*grain))
		}
	}
}
