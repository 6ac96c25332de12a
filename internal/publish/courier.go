package publish

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/link"
)

// Courier owns the routing keys that have entries in the outbox; mu guards them. It keeps messages that cannot be sent
// now, and sends the entries: those of one key one after the other, different keys side by side.
//
// Its goroutines, the carriers, start when there is work and end when there is none, so an empty outbox costs nothing.
// Its methods may be called by many goroutines at once. A nil *Courier belongs to a server without an outbox.
type Courier struct {
	cfg     Config
	durable bool // entries that remain are for the next process

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
	stalled  int           // carriers that have waited Timeout for an answer
	adding   int           // running calls of Outbox.Add
	moved    int64         // entries that have left; Flush watches it
	holding  bool          // there are entries, as far as known
	told     bool          // holding when it was last logged
	toldAt   int64         // moved when holding was last logged
	failing  int           // carriers that cannot go on because the outbox fails
	lastErr  error         // latest error of the outbox
	failedAt time.Time     // time of lastErr
	closed   bool          // no more entries are taken
	stopped  bool          // no carrier is started: before Start and after Stop
	changed  chan struct{} // closed at the next change; nil while nobody waits
}

// heldKey is a routing key that has entries in the outbox or is about to get one. All its messages are published
// through the outbox.
type heldKey struct {
	name   string
	adding int  // running calls of Outbox.Add
	more   bool // an Add has ended since a carrier last looked
	busy   bool // in ready, or held by a carrier
}

// NewCourier returns a courier, or nil without an outbox. It asks the outbox for entries that an earlier program left,
// and starts no goroutine.
func NewCourier(ctx context.Context, cfg Config) (*Courier, error) {
	if cfg.Outbox == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, link.OpenTimeout)
	defer cancel()
	c := &Courier{
		cfg:       cfg,
		keys:      make(map[string]*heldKey),
		offenders: make(chan struct{}, 1),
		telling:   make(chan struct{}, 1),
		stopped:   true,
	}
	c.sending, c.stopSending = context.WithCancel(context.Background())
	c.hard, c.stopHard = context.WithCancel(context.Background())
	c.durable = cfg.Outbox.Durable()
	cfg.Outbox.Notify(c.found) // before Keys, so that no entry is missed in between
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
		n := c.Health(ctx) // -1 means unknown
		c.cfg.Log.Info("the outbox has "+cfg.Noun+"s from an earlier start", "entries", n.Entries, "dead", n.Dead)
	}
	return c, nil
}

// Health reports how much the outbox holds.
func (c *Courier) Health(ctx context.Context) Health {
	if c == nil {
		return Health{}
	}
	n, err := c.cfg.Outbox.Counts(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		n = Counts{-1, -1}
		c.lastErr, c.failedAt = fmt.Errorf("count entries: %w", err), time.Now()
	}
	return Health{Entries: n.Entries, Dead: n.Dead, Failing: c.failing, LastError: c.lastErr, LastErrorAt: c.failedAt}
}

// tell logs that messages go to the outbox, or that it is empty again. The goroutine that logs checks again afterwards,
// so the others need not wait.
func (c *Courier) tell() {
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
			c.cfg.Log.Info(c.cfg.Noun + "s go to the outbox")
		default:
			c.cfg.Log.Info("the outbox is empty again", "entries", sent)
		}
		<-c.telling
	}
}

func (c *Courier) hasNews() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.holding != c.told
}

// Start begins to send the entries that an earlier program left.
func (c *Courier) Start() {
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
func (c *Courier) found(key string) {
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

// wake queues a key for a carrier if it has work, and forgets it if it has none. It is called with mu locked.
func (c *Courier) wake(k *heldKey) {
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
func (c *Courier) hire() {
	if len(c.ready) > 0 && c.carriers-c.stalled < maxCarriers && !c.stopped {
		c.carriers++
		go c.carry()
	}
}

// watch returns a channel that is closed at the next change. It is called with mu locked.
func (c *Courier) watch() <-chan struct{} {
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	return c.changed
}

// signal reports a change to those who watch. It is called with mu locked.
func (c *Courier) signal() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}
