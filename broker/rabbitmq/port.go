package rabbitmq

import (
	"context"
	"fmt"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

const (
	// renewPause is the least age of a channel that is replaced, because of a nack (a queue may really be full) or
	// because no answer came for that long.
	renewPause = 500 * time.Millisecond
	// reopenPause is the least time between two channels of a port when the broker has closed the first.
	reopenPause = 100 * time.Millisecond
	// scoutPause is how long a message that may be refused goes alone. If the channel is still open then, the queue is
	// only slow.
	scoutPause = 100 * time.Millisecond
	// maxRetired is how many replaced channels of a port may wait for answers. With renewPause that is 8 s. A channel
	// with firstQuota orphans is replaced even beyond that; maxUnanswered bounds those.
	maxRetired = 16
)

// The publish channels in use. A refusal closes only one of them.
const (
	defaultPort = iota // for the default exchange, where retries and dead letters go; it always exists
	delayPort          // for the delay levels
	namedPort          // for exchanges that are known to exist
	scoutPort          // for the others, and for bodies that may be too large: see scouting
	ports
)

// port is the outlet for messages to some exchanges. Messages of one port are written in order. Messages of different
// ports may overtake each other.
type port struct {
	p       *publisher
	writing turn
	pub     amqp.Publishing // what is written next; used with the turn

	// Guarded by publisher.mu; current is changed only with the turn.
	current *pipe   // nil = none was opened since the last one ended
	retired []*pipe // replaced, and not closed yet
	reopen  time.Time
}

// portOf returns the port of a message, or the error with which it is refused.
func (p *publisher) portOf(f *flight) (*port, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case f.size > p.fits:
		return &p.ports[scoutPort], nil
	case f.delay != nil:
		return &p.ports[delayPort], nil
	case f.exchange == "":
		return &p.ports[defaultPort], nil
	}
	switch x := p.exchange(f.exchange); {
	case x.passed:
		return &p.ports[namedPort], nil
	case x.refused != nil && time.Now().Before(x.until):
		return nil, x.refused
	}
	return &p.ports[scoutPort], nil
}

// forget removes pp from the retired pipes. The caller holds mu.
func (pt *port) forget(pp *pipe) {
	if i := slices.Index(pt.retired, pp); i >= 0 {
		pt.retired = slices.Delete(pt.retired, i, i+1)
	}
}

// hindrance says why a flight cannot be written yet. The zero value means that it can.
type hindrance struct {
	after  <-chan struct{} // wait until it is closed: another flight has the same name, or both are to go alone
	mended chan struct{}   // wait until it is closed: the end of the current pipe is being handled
	open   bool            // open a pipe
	pause  time.Duration   // wait that long
}

// seat puts f on the current pipe, or returns the reason why not. The caller holds the turn.
func (pt *port) seat(f *flight) hindrance {
	p := pt.p
	p.mu.Lock()
	defer p.unlock()
	now := time.Now()
	f.aim()
	name := f.name()
	for _, pp := range pt.retired {
		if other := pp.byName[name]; other != nil && !other.orphan {
			return hindrance{after: other.released()}
		}
	}
	pp := pt.current
	if pp == nil {
		return hindrance{open: true}
	}
	other := pp.byName[name]
	due := now.Sub(pp.opened) >= renewPause && (pp.stale || other != nil || pp.silent(now))
	switch {
	case pp.over():
		return hindrance{mended: pp.mended}
	case other != nil && !other.orphan:
		return hindrance{after: other.released()}
	case pp.orphans >= firstQuota || due && pt.room():
		return hindrance{open: true}
	case other != nil: // one channel cannot have a name twice, since returns are matched by name
		return hindrance{pause: renewPause}
	}
	if pt == &p.ports[scoutPort] && pp.flights.n > 0 {
		last := pp.flights.newest()
		switch left := scoutPause - now.Sub(last.since); {
		case left > 0 && last.orphan: // its over is closed, though it may still be refused
			return hindrance{pause: left}
		case left > 0:
			return hindrance{after: last.released()}
		}
	}
	pt.pub = f.pub // first, since put drops the content if ctx has ended
	pp.put(f, now)
	return hindrance{}
}

// room reports whether another pipe may be retired. If necessary it gives up one that has only orphans. The caller
// holds mu.
func (pt *port) room() bool {
	if len(pt.retired) < maxRetired {
		return true
	}
	for _, pp := range pt.retired {
		if pp.orphans == pp.flights.n {
			pp.close()
			return true
		}
	}
	return false
}

// board waits for the turn to write f, and still holds it when it returns. If f must wait for another flight, it
// returns a channel that is closed when that one is over, without the turn.
func (pt *port) board(ctx context.Context, f *flight) (other <-chan struct{}, err error) {
	dead, out := pt.p.s.dead, pt.p.conn.out
	for {
		if err := pt.p.gate.pass(ctx, dead); err != nil {
			return nil, err
		}
		if err := out.pass(ctx, dead); err != nil {
			return nil, err
		}
		if err := pt.writing.take(ctx, dead); err != nil {
			return nil, err
		}
		if pt.p.gate.shut.Load() != nil || out.full() {
			pt.writing.give() // that has changed meanwhile
			continue
		}
		h := pt.seat(f)
		if h == (hindrance{}) {
			return nil, nil
		}
		if h.open {
			err = pt.renew(ctx)
		}
		pt.writing.give()
		switch {
		case h.after != nil:
			return h.after, nil
		case h.mended != nil:
			err = await(ctx, dead, h.mended)
		case h.pause > 0:
			err = pause(ctx, dead, h.pause)
		}
		if err != nil {
			return nil, err
		}
	}
}

// renew opens a pipe and retires the one before it. The caller holds the turn.
func (pt *port) renew(ctx context.Context) error {
	if err := pt.pace(ctx); err != nil {
		return err
	}
	pp, err := call(ctx, pt.p.s, pt.openPipe, func(pp *pipe) { _ = pp.ch.Close() })
	if err != nil {
		return err
	}
	pt.use(pp)
	return nil
}

// pace waits until a pipe may be opened. If the broker closes one after the other, that is not at once.
func (pt *port) pace(ctx context.Context) error {
	pt.p.mu.Lock()
	left := time.Until(pt.reopen)
	pt.p.mu.Unlock()
	return pause(ctx, pt.p.s.dead, left)
}

// use makes pp the current pipe. The caller holds the turn, and is counted by the session.
func (pt *port) use(pp *pipe) {
	p := pt.p
	p.s.goroutines.add()
	go func() {
		defer p.s.goroutines.done()
		pp.watch()
	}()
	p.mu.Lock()
	defer p.unlock()
	if old := pt.current; old != nil {
		old.retired = true
		pt.retired = append(pt.retired, old)
		old.tidy()
	}
	pt.current = pp
	p.pipes = append(p.pipes, pp)
}

// mend handles the end of a pipe. RabbitMQ handles a channel in order and discards everything behind a refused message,
// so those flights are certainly in no queue. They are written again, in their order and before all others. If e is
// nil, the pipe was closed here.
func (pt *port) mend(pp *pipe, e *amqp.Error) {
	defer close(pp.mended)
	// With the turn, no other write can come between them.
	if pt.writing.take(context.Background(), pt.p.s.dead) != nil {
		return
	}
	defer pt.writing.give()
	again := pt.bury(pp, e)
	for i, f := range again {
		if err := pt.writeAgain(f); err != nil {
			pt.p.mu.Lock()
			for _, f := range again[i:] {
				pt.p.end(f, pt.p.notSent(err))
			}
			pt.p.unlock()
			return
		}
	}
}

// writeAgain writes f to the current pipe. If there is none, it opens one. The caller holds the turn.
func (pt *port) writeAgain(f *flight) error {
	p := pt.p
	if err := p.gate.pass(context.Background(), p.s.dead); err != nil {
		return err
	}
	if pt.current == nil {
		if err := pt.pace(context.Background()); err != nil {
			return err
		}
		pp, err := pt.openPipe()
		if err != nil {
			p.s.fail(fmt.Errorf("%w: publish connection: %w", broker.ErrSessionLost, err))
			return errOver
		}
		pt.use(pp)
	}
	p.mu.Lock()
	if f.caller.gone {
		p.end(f, errOrphan)
		p.unlock()
		return nil
	}
	f.aim()
	pt.current.put(f, time.Now())
	pub := f.pub
	p.unlock()
	if err := pt.current.write(f, pub); err != nil {
		p.mu.Lock()
		p.end(f, err)
		p.unlock()
	}
	return nil
}

// await waits for c.
func await(ctx context.Context, dead, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-dead:
		return errOver
	}
}

// pause waits for d.
func pause(ctx context.Context, dead <-chan struct{}, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-dead:
		return errOver
	}
}
