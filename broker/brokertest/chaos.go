package brokertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Chaos is a broker that fails on demand. It passes every call to a healthy broker unless one of its methods has set a
// fault. The methods may be called at any time by any goroutine, and also affect open sessions.
//
// Without faults it satisfies the contract, with one difference: it takes deliveries from the inner consumer before
// they are received, so it does not have [broker.Capabilities.ExactLosses].
type Chaos struct {
	inner broker.Broker
	cut   func() // kills the inner sessions; nil = Kill closes them

	hold atomic.Bool

	mu       sync.Mutex       // guards the rest
	open     error            // from Open
	declare  error            // from Declare
	dead     error            // from DeadLetter
	retry    error            // from Retry and Suspect
	queues   map[string]error // by queue, from the calls of FailQueue
	gate     chan struct{}
	opens    int
	sessions map[*chaosSession]struct{} // the live ones
}

var (
	_ broker.Broker   = (*Chaos)(nil)
	_ broker.Volatile = (*Chaos)(nil)
)

// NewChaos wraps inner. kill ends all sessions of inner as a lost link would. If kill is nil, [Chaos.Kill] closes the
// sessions and they report a lost link.
func NewChaos(inner broker.Broker, kill func()) *Chaos {
	return &Chaos{inner: inner, cut: kill, sessions: make(map[*chaosSession]struct{})}
}

// Stranded implements [broker.Volatile] by calling the inner broker. It returns 0 if that does not implement it.
func (c *Chaos) Stranded() (messages, dead int) {
	if v, ok := c.inner.(broker.Volatile); ok {
		return v.Stranded()
	}
	return 0, 0
}

// FailOpen makes every Open return err, until FailOpen(nil).
func (c *Chaos) FailOpen(err error) { c.set(&c.open, err) }

// RefuseDeclare makes every Declare return err and declare nothing, until RefuseDeclare(nil).
func (c *Chaos) RefuseDeclare(err error) { c.set(&c.declare, err) }

// FailQueue makes every Declare that names queue return err and declare nothing, until FailQueue(queue, nil). If err Is
// [broker.ErrUnavailable], Consume, TryGet, Inspect, Purge and Delete of queue return it too.
func (c *Chaos) FailQueue(queue string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.queues == nil {
		c.queues = make(map[string]error)
	}
	if c.queues[queue] = err; err == nil {
		delete(c.queues, queue)
	}
}

// away returns the reason why a queue cannot be used, or nil.
func (c *Chaos) away(queue string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.queues[queue]; errors.Is(err, broker.ErrUnavailable) {
		return err
	}
	return nil
}

// refuses returns the reason why a topology cannot be declared, or nil.
func (c *Chaos) refuses(t broker.Topology) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.declare != nil {
		return c.declare
	}
	for _, q := range t.Queues {
		if err := c.queues[q.Name]; err != nil {
			return fmt.Errorf("declare queue %q: %w", q.Name, err)
		}
	}
	for _, b := range t.Bindings {
		if err := c.queues[b.Queue]; err != nil {
			return fmt.Errorf("bind queue %q: %w", b.Queue, err)
		}
	}
	return nil
}

// FailDeadLetter makes every DeadLetter return err and leave its delivery open, until FailDeadLetter(nil).
func (c *Chaos) FailDeadLetter(err error) { c.set(&c.dead, err) }

// FailRetry makes every Retry and Suspect return err and leave its delivery open, until FailRetry(nil).
func (c *Chaos) FailRetry(err error) { c.set(&c.retry, err) }

// Block makes Publish, Retry, Suspect and DeadLetter wait at a gate, as a broker without free memory does. They go on
// after Block(false), and fail with ErrNotSent if their context or the session ends first. Calls that have passed the
// gate are not held.
func (c *Chaos) Block(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case on && c.gate == nil:
		c.gate = make(chan struct{})
	case !on && c.gate != nil:
		close(c.gate)
		c.gate = nil
	}
}

// HoldConfirms holds back the broker's answers to Publish: the messages are passed on, but done does not run.
// HoldConfirms(false) gives the answers, on the caller's goroutine. If the session ends first, the answer is
// ErrUnconfirmed. Close of a session waits for held answers as for others. Retry, Suspect and DeadLetter are not held.
func (c *Chaos) HoldConfirms(on bool) {
	c.hold.Store(on)
	if on {
		return
	}
	for _, s := range c.live() {
		s.release()
	}
}

// Opens returns how often Open was called, with or without success.
func (c *Chaos) Opens() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opens
}

// Live returns how many sessions are open now.
func (c *Chaos) Live() int { return len(c.live()) }

// Kill ends all live sessions as a lost link would. It does not wait until the sessions notice: see their Done.
func (c *Chaos) Kill() {
	if c.cut != nil {
		c.cut()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // a lost link does not wait
	for _, s := range c.live() {
		if s.Session.Err() == nil {
			s.killed.Store(true)
		}
		_ = s.Session.Close(ctx)
	}
}

// Open implements [broker.Broker].
func (c *Chaos) Open(ctx context.Context) (broker.Session, error) {
	c.mu.Lock()
	c.opens++
	err := c.open
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	inner, err := c.inner.Open(ctx)
	if err != nil {
		return nil, err
	}
	s := &chaosSession{Session: inner, c: c, done: make(chan struct{})}
	c.mu.Lock()
	c.sessions[s] = struct{}{}
	c.mu.Unlock()
	go s.run()
	return s, nil
}

func (c *Chaos) set(knob *error, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*knob = err
}

func (c *Chaos) get(knob *error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return *knob
}

func (c *Chaos) live() []*chaosSession {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.sessions))
}

// pass waits at the gate of Block.
func (c *Chaos) pass(ctx context.Context, over <-chan struct{}, reason error) error {
	c.mu.Lock()
	gate := c.gate
	c.mu.Unlock()
	if gate == nil {
		return nil
	}
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the broker blocks: %w: %w", broker.ErrNotSent, ctx.Err())
	case <-over:
		return fmt.Errorf("the broker blocked: %w: %w", broker.ErrNotSent, reason)
	}
}

// wrap puts the faults in front of a delivery's settler.
func (c *Chaos) wrap(d broker.Delivery) broker.Delivery {
	d.Settler = &chaosSettler{Settler: d.Settler, c: c}
	return d
}

type chaosSettler struct {
	broker.Settler
	c *Chaos
}

func (s *chaosSettler) Retry(ctx context.Context, m broker.Message, delay time.Duration) error {
	return s.publish(ctx, &s.c.retry, func() error { return s.Settler.Retry(ctx, m, delay) })
}

func (s *chaosSettler) Suspect(ctx context.Context, m broker.Message) error {
	return s.publish(ctx, &s.c.retry, func() error { return s.Settler.Suspect(ctx, m) })
}

func (s *chaosSettler) DeadLetter(ctx context.Context, m broker.Message) error {
	return s.publish(ctx, &s.c.dead, func() error { return s.Settler.DeadLetter(ctx, m) })
}

// publish returns the error of the knob if it is set. Otherwise it passes the gate and calls settle.
func (s *chaosSettler) publish(ctx context.Context, knob *error, settle func() error) error {
	if err := s.c.get(knob); err != nil {
		return err
	}
	if err := s.c.pass(ctx, s.Lost(), broker.ErrDeliveryLost); err != nil {
		return err
	}
	return settle()
}
