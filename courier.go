package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/link"
)

// courier connects the publisher with the outbox. It keeps tasks that cannot be sent now, knows which routing keys have
// entries, and sends the entries: those of one key one after the other, different keys side by side.
//
// Its goroutines, the carriers, start when there is work and end when there is none, so an empty outbox costs nothing.
// A nil *courier belongs to a server without an outbox.
type courier struct {
	cfg     *ServerConfig
	sup     *link.Supervisor
	log     *slog.Logger
	stats   *publishCounters // of the publisher
	durable bool             // entries that remain are for the next process

	exchangeGone func() // as the publisher's

	// sending ends first: no more entries are sent. When hard ends, nothing waits for outcomes any more.
	sending     context.Context
	stopSending context.CancelFunc
	hard        context.Context
	stopHard    context.CancelFunc

	farewell  sync.Once
	telling   chan struct{} // held by the goroutine that logs the state
	offenders chan struct{} // held by the carrier of an entry that may make the broker end links

	mu       sync.Mutex // guards the fields below; never held during a call of the outbox or the broker
	keys     map[string]*heldKey
	ready    []*heldKey    // keys that have work and no carrier, in turn
	carriers int           // number of carrier goroutines
	stalled  int           // carriers that have waited PublishTimeout for an answer
	adding   int           // running calls of Outbox.Add
	moved    int64         // entries that have left; flush watches it
	holding  bool          // there are entries, as far as known
	told     bool          // holding when it was last logged
	toldAt   int64         // moved when holding was last logged
	failing  int           // carriers that cannot go on because the outbox fails
	lastErr  error         // latest error of the outbox
	failedAt time.Time     // time of lastErr
	closed   bool          // no more entries are taken
	stopped  bool          // no carrier is started: before start and after stop
	changed  chan struct{} // closed at the next change; nil while nobody waits
}

// heldKey is a routing key that has entries in the outbox or is about to get one. All its tasks are published through
// the outbox.
type heldKey struct {
	name   string
	adding int  // running calls of Outbox.Add
	more   bool // an Add has ended since a carrier last looked
	busy   bool // in ready, or held by a carrier
}

// newCourier creates the courier and asks the outbox for entries that an earlier program left. It starts no goroutine.
func newCourier(ctx context.Context, p *publisher) (*courier, error) {
	cfg := p.cfg
	if cfg.Outbox == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, link.OpenTimeout)
	defer cancel()
	c := &courier{cfg: cfg, sup: p.sup, log: p.log, exchangeGone: p.exchangeGone, stats: &p.stats, keys: make(map[string]*heldKey), offenders: make(chan struct{}, 1), telling: make(chan struct{}, 1), stopped: true}
	c.sending, c.stopSending = context.WithCancel(context.Background())
	c.hard, c.stopHard = context.WithCancel(context.Background())
	if d, ok := cfg.Outbox.(DurableOutbox); ok {
		c.durable = d.Durable()
	}
	if n, ok := cfg.Outbox.(OutboxNotifier); ok { // before Keys, so that no entry is missed in between
		n.Notify(c.found)
	}
	names, err := cfg.Outbox.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("outbox: list routing keys: %w", err)
	}
	for _, name := range names {
		c.found(name)
	}
	if len(names) > 0 {
		c.mu.Lock()
		c.told = true
		c.mu.Unlock()
		n := c.health(ctx) // -1 means unknown
		p.log.Info("tasks are in the outbox since an earlier start", "entries", n.Entries, "dead", n.Dead)
	}
	return c, nil
}

// tell logs that tasks go to the outbox, or that it is empty again. The goroutine that logs checks again afterwards, so
// the others need not wait.
func (c *courier) tell() {
	for c.hasNews() {
		select {
		case c.telling <- struct{}{}:
		default:
			return
		}
		c.mu.Lock()
		holding, sent, changed := c.holding, c.moved-c.toldAt, c.holding != c.told
		c.told, c.toldAt = holding, c.moved
		c.mu.Unlock()
		switch {
		case !changed:
		case holding:
			c.log.Info("tasks go to the outbox")
		default:
			c.log.Info("the outbox is empty again", "entries", sent)
		}
		<-c.telling
	}
}

func (c *courier) hasNews() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.holding != c.told
}

// start begins to send the entries that an earlier program left.
func (c *courier) start() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = false
	for _, k := range c.keys {
		c.wake(k)
	}
	for range c.ready { // queued by found
		c.hire()
	}
}

// found schedules the sending of an entry that did not come from add. A server that no longer sends leaves the entry in
// the outbox.
func (c *courier) found(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.keys[key]
	if k == nil {
		k = &heldKey{name: key}
		c.keys[key] = k
	}
	k.more = true
	c.holding = true
	c.wake(k)
	c.signal()
}

// divert removes from out the messages that go to the outbox, and returns them: all messages, or those whose key has
// entries. Each key is decided once for the whole batch, so that a batch cannot overtake itself. The caller must pass
// the result to keep.
func (c *courier) divert(out *outbound, all bool) (kept outbound) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept.errs = out.errs
	if !all && len(c.keys) == 0 {
		return kept
	}
	held := func(key string) bool { return all || c.keys[key] != nil }
	diverted := make(map[string]bool)
	rest := 0
	for i, msg := range out.msgs {
		to, known := diverted[msg.RoutingKey]
		if !known {
			to = held(msg.RoutingKey)
			diverted[msg.RoutingKey] = to
		}
		if !to {
			out.msgs[rest], out.index[rest] = msg, out.index[i]
			rest++
			continue
		}
		kept.msgs, kept.index = append(kept.msgs, msg), append(kept.index, out.index[i])
		k := c.keys[msg.RoutingKey]
		if k == nil {
			k = &heldKey{name: msg.RoutingKey}
			c.keys[msg.RoutingKey] = k
		}
		k.adding++
		c.adding++
	}
	out.msgs, out.index = out.msgs[:rest], out.index[:rest]
	return kept
}

// keep adds messages to the outbox in order and records their outcomes.
func (c *courier) keep(ctx context.Context, kept outbound) {
	if len(kept.msgs) == 0 {
		return
	}
	for i := range kept.msgs {
		err := c.add(ctx, entryOf(&kept.msgs[i]))
		kept.errs[kept.index[i]] = err
		// The entry may be stored even though Add failed, so a carrier must check.
		in := errors.Is(err, ErrInOutbox)
		c.added(kept.msgs[i].RoutingKey, in, in || errors.Is(err, ErrUnconfirmed))
	}
	c.tell()
}

// add adds one entry to the outbox and returns the outcome of its publish.
func (c *courier) add(ctx context.Context, e OutboxEntry) error {
	if c.over() {
		l, _ := c.sup.Now()
		return l.Over()
	}
	if ctx.Err() != nil {
		return fault.EndedBefore(ErrNotSent, ctx)
	}
	switch err := c.cfg.Outbox.Add(ctx, e); {
	case err == nil || errors.Is(err, ErrInOutbox):
		return ErrInOutbox
	case errors.Is(err, ErrRejected) || errors.Is(err, ErrNotSent) || errors.Is(err, ErrUnconfirmed):
		return fmt.Errorf("outbox: %w", err)
	default:
		return fmt.Errorf("outbox: %w: %w", ErrUnconfirmed, err)
	}
}

// over reports whether no more entries may be kept.
func (c *courier) over() bool {
	l, _ := c.sup.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed || l.State == link.Closed || l.State == link.GivenUp
}

// added ends what divert began for one message. in: the outbox has it. look: a carrier must check.
func (c *courier) added(key string, in, look bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.signal()
	k := c.keys[key]
	k.adding--
	c.adding--
	if look {
		k.more = true
	}
	if in {
		c.holding = true
	}
	c.wake(k)
}

// wake queues a key for a carrier if it has work, and forgets it if it has none. It is called with mu locked.
func (c *courier) wake(k *heldKey) {
	switch {
	case k.busy:
	case k.more:
		k.busy = true
		c.ready = append(c.ready, k)
		c.hire()
	case k.adding == 0:
		if delete(c.keys, k.name); len(c.keys) == 0 {
			c.holding = false
		}
	}
}

// hire starts a carrier if a key waits for one and another is allowed. It is called with mu locked.
func (c *courier) hire() {
	if len(c.ready) > 0 && c.carriers-c.stalled < maxCarriers && !c.stopped {
		c.carriers++
		go c.carry()
	}
}

// close stops accepting entries. From then on, a publish whose key has entries is not sent.
func (c *courier) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
}

// flush waits until there are no entries, ctx ends, or the connection is given up. If ctx has no deadline, flush also
// returns when no entry has left for PublishTimeout. Otherwise a broker would decide when the program ends.
// For a durable outbox it also ends as soon as the broker takes no tasks.
func (c *courier) flush(ctx context.Context) {
	if c == nil {
		return
	}
	c.close()
	idle := time.NewTimer(c.cfg.PublishTimeout)
	defer idle.Stop()
	late := idle.C
	if _, bounded := ctx.Deadline(); bounded {
		late = nil
	}
	var blocks <-chan time.Time // a broker that begins to block sends no signal here
	if c.durable {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		blocks = t.C
	}
	hurried := false
	for moved := int64(0); ; {
		l, linked := c.sup.Now()
		c.mu.Lock()
		empty, now, changed := len(c.keys) == 0, c.moved, c.watch()
		c.mu.Unlock()
		switch {
		case empty || l.State == link.GivenUp || l.State == link.Closed:
			return
		case c.durable && !takes(l):
			return
		case l.State == link.Connecting && !hurried: // once, or a broker that accepts and drops would be dialled without pauses
			c.sup.Hurry()
			hurried = true
		}
		if now != moved {
			moved = now
			idle.Reset(c.cfg.PublishTimeout)
		}
		select {
		case <-changed:
		case <-linked:
		case <-blocks:
		case <-late:
			return
		case <-ctx.Done():
			return
		}
	}
}

// takes reports whether there is a session whose broker does not block publishers.
func takes(l link.Status) bool {
	if l.Session == nil {
		return false
	}
	_, blocked := l.Session.Blocked()
	return !blocked
}

// stop ends the courier. It sends nothing more and waits for outcomes until ctx ends. The error describes the entries
// that remain. If stop is called twice, each call waits.
func (c *courier) stop(ctx context.Context) error {
	if c == nil {
		return nil
	}
	c.close()
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	c.stopSending()
	c.idle(ctx)
	c.stopHard()
	late, cancel := context.WithTimeout(context.Background(), link.CloseTimeout)
	defer cancel()
	if !c.idle(late) {
		return errors.New("the outbox does not return")
	}
	return c.left(late)
}

// idle waits until no carrier and no Add is running. It returns false if ctx ends first.
func (c *courier) idle(ctx context.Context) bool {
	for {
		c.mu.Lock()
		idle, changed := c.carriers == 0 && c.adding == 0, c.watch()
		c.mu.Unlock()
		if idle {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// left returns nil if no entries are left. It logs those that are left in a durable outbox, and returns nil.
func (c *courier) left(ctx context.Context) error {
	c.mu.Lock()
	keys := len(c.keys)
	c.mu.Unlock()
	if keys == 0 {
		return nil
	}
	n, err := c.cfg.Outbox.Counts(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("%w: in %d routing keys; how many is not known: %w", ErrOutboxNotEmpty, keys, err)
	case n.Entries == 0:
		return nil
	case c.durable:
		c.farewell.Do(func() {
			c.log.Warn("tasks are left in the outbox for the next start", "entries", n.Entries, "dead", n.Dead)
		})
		return nil
	default:
		return fmt.Errorf("%w: %d, and %d dead ones", ErrOutboxNotEmpty, n.Entries, n.Dead)
	}
}

// watch returns a channel that is closed at the next change. It is called with mu locked.
func (c *courier) watch() <-chan struct{} {
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	return c.changed
}

// signal reports a change to those who watch. It is called with mu locked.
func (c *courier) signal() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// health reports how much the outbox holds.
func (c *courier) health(ctx context.Context) OutboxHealth {
	if c == nil {
		return OutboxHealth{}
	}
	n, err := c.cfg.Outbox.Counts(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		n = OutboxCounts{-1, -1}
		c.lastErr, c.failedAt = fmt.Errorf("count: %w", err), time.Now()
	}
	return OutboxHealth{Entries: n.Entries, Dead: n.Dead, Failing: c.failing, LastError: c.lastErr, LastErrorAt: c.failedAt}
}
