package link

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/seed-416683c9/dispatcher/broker"
)

const (
	// declareTimeout bounds the declarations before a new session is used, or a worker consumes in it. Slower ones are
	// tried again later: a queue that does not answer must not hold up the others.
	declareTimeout = 5 * time.Second
	// declareEach bounds one of them.
	declareEach = 2 * time.Second
)

// errNotYet is the problem of a part that was not tried.
var errNotYet = errors.New("not declared yet: other declarations took too long")

// Declarer declares parts, and tries those again that the broker does not accept now. At the first connect a refusal is
// an error. Later the part is tried again, and everything else goes on. Its methods may be called by many goroutines at
// once.
type Declarer struct {
	log  *slog.Logger
	sup  *Supervisor
	wake chan struct{} // signals a new part; holds one

	mu    sync.Mutex // guards what follows; never held across I/O
	died  partKey    // the part being declared when a session died, if it was not declared since
	parts map[partKey]*refusedPart
}

// refusedPart is a part that the broker does not accept.
type refusedPart struct {
	Part
	problem string
	since   time.Time
	due     time.Time // when it is tried again
	fatal   bool      // the session ended over it, or at the same moment
	pauses  backoff.BackOff
}

// NewDeclarer returns a declarer that tries nothing again before Run.
func NewDeclarer(log *slog.Logger, sup *Supervisor) *Declarer {
	return &Declarer{log: log, sup: sup, wake: make(chan struct{}, 1), parts: make(map[partKey]*refusedPart)}
}

// Declare declares parts one by one and notes those that fail. It returns an error only if the session is dead or ctx
// has ended.
func (d *Declarer) Declare(ctx context.Context, session broker.Session, parts []Part) error {
	bounded, cancel := context.WithTimeout(ctx, declareTimeout)
	defer cancel()
	for i := range parts {
		p := &parts[i]
		switch {
		case d.postponed(p):
		case ctx.Err() != nil:
			return ctx.Err()
		case bounded.Err() != nil:
			d.note(p, errNotYet, false, false)
		default:
			if err := d.try(bounded, session, p, false); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// DeclareOnce declares parts one by one and logs refusals. It notes nothing, so a refused part is not tried
// again.
func (d *Declarer) DeclareOnce(ctx context.Context, session broker.Session, parts []Part) {
	for _, p := range parts { // a refused one must not prevent the others
		if err := session.Declare(ctx, p.Topology); err != nil {
			d.log.Warn("cannot declare", "worker", p.Owner, p.Kind, p.Name, "err", p.brief(err))
		}
	}
}

// try declares one part. It returns an error only if the session is dead.
func (d *Declarer) try(ctx context.Context, session broker.Session, p *Part, again bool) error {
	ctx, cancel := context.WithTimeout(ctx, declareEach)
	defer cancel()
	err := session.Declare(ctx, p.Topology)
	dead := session.Err()
	if errors.Is(err, context.Canceled) && dead == nil {
		return nil // nobody wants it any more
	}
	if d.conclusive(p, err == nil, dead != nil) {
		d.note(p, err, dead != nil, again)
	}
	return dead
}

// conclusive reports whether the outcome of a declaration says something about the part. If the session died meanwhile,
// only the second such outcome in a row does.
func (d *Declarer) conclusive(p *Part, accepted, dead bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.died
	if dead && !accepted {
		d.died = p.key()
		return before == p.key()
	}
	if before == p.key() {
		d.died = partKey{}
	}
	return true
}

// postponed reports whether a part has to wait because a session ended over it: it would end this session before it is
// used. RabbitMQ ends the connection (541) if it cannot make a quorum queue for want of a majority.
func (d *Declarer) postponed(p *Part) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.parts[p.key()]
	return r != nil && r.fatal && time.Now().Before(r.due)
}

// note records the outcome of a declaration, and logs it if it has changed. With again, it ignores the outcome of a
// part that was forgotten meanwhile.
func (d *Declarer) note(p *Part, err error, fatal, again bool) {
	d.mu.Lock()
	r := d.parts[p.key()]
	if again && r == nil {
		d.mu.Unlock()
		return
	}
	before := ""
	if r != nil {
		before = r.problem
	}
	switch {
	case err == nil:
		delete(d.parts, p.key())
	case r == nil:
		r = &refusedPart{since: time.Now(), pauses: reconnectPauses(0)}
		d.parts[p.key()] = r
		fallthrough
	default:
		r.Part, r.problem, r.fatal, r.due = *p, p.brief(err), fatal, time.Now().Add(PauseAfter(err, r.pauses))
	}
	d.mu.Unlock()
	switch {
	case err == nil && before != "":
		d.log.Info("declared again", p.Kind, p.Name)
	case err != nil && p.brief(err) != before:
		d.log.Warn("cannot declare; trying again while everything else continues", p.Kind, p.Name, "err", p.brief(err))
		d.changed()
	}
}

// Redeclare schedules parts to be declared again, in order, although they were accepted before.
func (d *Declarer) Redeclare(parts []Part, why error) {
	now := time.Now()
	d.mu.Lock()
	fresh := false
	for i := range parts {
		if d.parts[parts[i].key()] == nil {
			fresh = true
			d.parts[parts[i].key()] = &refusedPart{
				Part:    parts[i],
				problem: why.Error(),
				since:   now,
				due:     now.Add(time.Duration(i)),
				pauses:  reconnectPauses(0),
			}
		}
	}
	d.mu.Unlock()
	if !fresh {
		return
	}
	d.log.Warn("declaring again", parts[0].Kind, parts[0].Name, "err", why)
	d.changed()
}

// changed wakes Run.
func (d *Declarer) changed() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Forget drops the parts of a worker that has ended.
func (d *Declarer) Forget(owner string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.parts, func(key partKey, _ *refusedPart) bool { return key.owner == owner })
}

// List returns the parts that are refused now, by name.
func (d *Declarer) List() []Undeclared {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []Undeclared
	for _, r := range d.parts {
		list = append(list, Undeclared{r.Kind, r.Name, r.problem, r.since})
	}
	slices.SortFunc(list, func(a, b Undeclared) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Kind, b.Kind), a.Since.Compare(b.Since))
	})
	// Several workers may need the same queue.
	return slices.CompactFunc(list, func(a, b Undeclared) bool { return a.Name == b.Name && a.Kind == b.Kind })
}

// next returns the part to try next, and how long to wait for it.
func (d *Declarer) next() (p *Part, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var first *refusedPart
	for _, r := range d.parts {
		if first == nil || r.due.Before(first.due) {
			first = r
		}
	}
	if first == nil {
		return nil, 0
	}
	again := first.Part
	return &again, time.Until(first.due)
}

// Run tries the parts again until the supervision has ended.
func (d *Declarer) Run() {
	var dead broker.Session
	for {
		p, wait := d.next()
		timer := time.NewTimer(wait)
		due := timer.C
		if p == nil {
			due = nil
		}
		select {
		case <-due:
			session, err := d.sup.Await(context.Background(), dead)
			if err != nil {
				return // closed, or given up
			}
			// A new session declares everything first, so this part may be declared already.
			if d.still(p) && d.try(context.Background(), session, p, true) != nil {
				dead = session
			}
		case <-d.wake:
		case <-d.sup.ended:
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// still reports whether a part is to be tried now.
func (d *Declarer) still(p *Part) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.parts[p.key()]
	return r != nil && !time.Now().Before(r.due)
}
