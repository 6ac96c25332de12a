package brokertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/seed-416683c9/dispatcher/broker"
)

// chaosSession is a session of Chaos. It ends after the inner session, when every publish has its answer.
type chaosSession struct {
	broker.Session
	c      *Chaos
	killed atomic.Bool   // Kill closed the inner session: report a lost link
	done   chan struct{} // closed by run

	mu    sync.Mutex // guards the rest
	over  bool       // the inner session is dead: no more answers are held
	calls sync.WaitGroup
	held  []heldAnswer
	empty chan struct{} // closed when the held answers are given; nil while none are held
}

type heldAnswer struct {
	done func(i int, err error)
	i    int
	err  error
}

// run ends the session after the inner one has ended.
func (s *chaosSession) run() {
	<-s.Session.Done()
	s.mu.Lock()
	s.over = true
	held, _ := s.takeHeld()
	s.mu.Unlock()
	for _, a := range held {
		a.done(a.i, fmt.Errorf("the session died: %w", broker.ErrUnconfirmed))
	}
	s.calls.Wait()
	s.c.mu.Lock()
	delete(s.c.sessions, s)
	s.c.mu.Unlock()
	close(s.done)
}

// Capabilities implements [broker.Session].
func (s *chaosSession) Capabilities() broker.Capabilities {
	caps := s.Session.Capabilities()
	caps.ExactLosses = false
	return caps
}

// Blocked implements [broker.Session]. It also reports a block by Chaos.Block.
func (s *chaosSession) Blocked() (reason string, blocked bool) {
	s.c.mu.Lock()
	shut := s.c.gate != nil
	s.c.mu.Unlock()
	if shut {
		return "blocked by the test", true
	}
	return s.Session.Blocked()
}

func (s *chaosSession) Declare(ctx context.Context, t broker.Topology) error {
	if err := s.c.refuses(t); err != nil {
		return err
	}
	return s.Session.Declare(ctx, t)
}

func (s *chaosSession) Publish(ctx context.Context, msgs []broker.Message, done func(i int, err error)) {
	s.mu.Lock()
	if !s.over { // run waits for this call
		s.calls.Add(1)
		defer s.calls.Done()
	}
	s.mu.Unlock()
	if err := s.c.pass(ctx, s.Session.Done(), broker.ErrSessionLost); err != nil {
		for i := range msgs {
			done(i, err)
		}
		return
	}
	s.Session.Publish(ctx, msgs, func(i int, err error) { s.answer(heldAnswer{done, i, err}) })
}

// answer runs done. If confirms are held and the broker has answered, it holds the answer instead.
func (s *chaosSession) answer(a heldAnswer) {
	answered := a.err == nil || errors.Is(a.err, broker.ErrRejected) || errors.Is(a.err, broker.ErrNacked)
	s.mu.Lock()
	// hold is read under mu, so that the release after its reset sees every answer held here.
	if s.c.hold.Load() && !s.over && answered {
		if s.empty == nil {
			s.empty = make(chan struct{})
		}
		s.held = append(s.held, a)
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	a.done(a.i, a.err)
}

// release gives the held answers.
func (s *chaosSession) release() {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	s.calls.Add(1) // run waits for these answers
	defer s.calls.Done()
	held, empty := s.takeHeld()
	s.mu.Unlock()
	for _, a := range held {
		a.done(a.i, a.err)
	}
	if empty != nil {
		close(empty)
	}
}

// takeHeld returns the held answers and clears them. The caller holds mu.
func (s *chaosSession) takeHeld() (held []heldAnswer, empty chan struct{}) {
	held, empty = s.held, s.empty
	s.held, s.empty = nil, nil
	return held, empty
}

func (s *chaosSession) Consume(ctx context.Context, o broker.ConsumeOptions) (broker.Consumer, error) {
	if err := s.c.away(o.Queue); err != nil {
		return nil, err
	}
	inner, err := s.Session.Consume(ctx, o)
	if err != nil {
		return nil, err
	}
	return &chaosConsumer{tapped: tap(inner, cmp.Or(o.MaxPrefetch, o.Prefetch), s.c.wrap), s: s}, nil
}

func (s *chaosSession) TryGet(ctx context.Context, queue string, max int) ([]broker.Delivery, error) {
	if err := s.c.away(queue); err != nil {
		return nil, err
	}
	ds, err := s.Session.TryGet(ctx, queue, max)
	for i := range ds {
		ds[i] = s.c.wrap(ds[i])
	}
	return ds, err
}

func (s *chaosSession) Inspect(ctx context.Context, queue string) (broker.QueueInfo, error) {
	if err := s.c.away(queue); err != nil {
		return broker.QueueInfo{}, err
	}
	return s.Session.Inspect(ctx, queue)
}

func (s *chaosSession) Purge(ctx context.Context, queue string) (int, error) {
	if err := s.c.away(queue); err != nil {
		return 0, err
	}
	return s.Session.Purge(ctx, queue)
}

func (s *chaosSession) Delete(ctx context.Context, queue string) error {
	if err := s.c.away(queue); err != nil {
		return err
	}
	return s.Session.Delete(ctx, queue)
}

func (s *chaosSession) Done() <-chan struct{} { return s.done }

func (s *chaosSession) Err() error { return s.reason(s.Session.Err()) }

func (s *chaosSession) Close(ctx context.Context) error {
	s.mu.Lock()
	empty := s.empty
	s.mu.Unlock()
	var late error
	if empty != nil {
		select {
		case <-empty:
		case <-s.Session.Done():
		case <-ctx.Done():
			late = fmt.Errorf("close: confirmations are held: %w", ctx.Err())
		}
	}
	err := s.Session.Close(ctx)
	select {
	case <-s.done:
	case <-ctx.Done():
	}
	return errors.Join(late, err)
}

// reason replaces the error of a session that Kill has closed with that of a lost link.
func (s *chaosSession) reason(err error) error {
	if err != nil && s.killed.Load() {
		return fmt.Errorf("killed: %w", broker.ErrSessionLost)
	}
	return err
}

type chaosConsumer struct {
	*tapped
	s *chaosSession
}

func (c *chaosConsumer) Err() error {
	err := c.tapped.Err()
	if errors.Is(err, broker.ErrSessionLost) {
		return c.s.reason(err)
	}
	return err
}

// tapped is a consumer whose deliveries pass through a function.
type tapped struct {
	broker.Consumer
	out   chan broker.Delivery
	flush chan chan struct{} // run closes each of them once it has passed on what had come before
	done  chan struct{}      // closed by run
}

func tap(inner broker.Consumer, prefetch int, wrap func(broker.Delivery) broker.Delivery) *tapped {
	t := &tapped{
		Consumer: inner, out: make(chan broker.Delivery, prefetch), flush: make(chan chan struct{}), done: make(chan struct{}),
	}
	go t.run(wrap)
	return t
}

// run passes deliveries on until the inner consumer ends, and releases those that were not received. It never blocks on
// out, which has room for all unsettled deliveries.
func (t *tapped) run(wrap func(broker.Delivery) broker.Delivery) {
	defer close(t.done)
	defer close(t.out)
	in := t.Consumer.Deliveries()
	for open := true; open; {
		select {
		case d, ok := <-in:
			if open = ok; ok {
				t.out <- wrap(d)
			}
		case passed := <-t.flush:
			for range len(in) { // nobody else receives
				if d, ok := <-in; ok {
					t.out <- wrap(d)
				}
			}
			close(passed)
		}
	}
	for {
		select {
		case d := <-t.out:
			_ = d.Release() // ErrDeliveryLost has the same effect
		default:
			return
		}
	}
}

func (t *tapped) Deliveries() <-chan broker.Delivery { return t.out }

func (t *tapped) Done() <-chan struct{} { return t.done }

// SetPrefetch returns when the deliveries that were handed out are in out.
func (t *tapped) SetPrefetch(ctx context.Context, n int) error {
	if err := t.Consumer.SetPrefetch(ctx, n); err != nil {
		return err
	}
	passed := make(chan struct{})
	select {
	case t.flush <- passed:
	case <-t.done:
	}
	select {
	case <-passed:
		return nil
	case <-t.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *tapped) Stop(ctx context.Context) error { return t.end(ctx, t.Consumer.Stop(ctx)) }

func (t *tapped) Close(ctx context.Context) error { return t.end(ctx, t.Consumer.Close(ctx)) }

// end waits until the deliveries in out are given back too.
func (t *tapped) end(ctx context.Context, err error) error {
	select {
	case <-t.done:
		return err
	case <-ctx.Done():
		return errors.Join(err, ctx.Err())
	}
}
