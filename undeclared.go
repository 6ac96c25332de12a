package dispatcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Here the server retries declarations that the broker does not accept now. At the first connect they are errors. Later
// they are tried again, and everything else goes on.

const (
	// declareTimeout bounds the declarations before a new session is used, or a worker consumes in it. Slower ones are
	// tried again later: a queue that does not answer must not hold up the others.
	declareTimeout = 5 * time.Second
	// declareEach bounds one of them.
	declareEach = 2 * time.Second
)

// errNotYet is the problem of a part that was not tried.
var errNotYet = errors.New("not declared yet: others take too long")

// Undeclared is a queue or an exchange that the server cannot declare now. The server tries again, with pauses up to
// 30 s, as long as it lives.
type Undeclared struct {
	Kind    string    `json:"kind"`    // "queue" or "exchange"
	Name    string    `json:"name"`    // of the queue or exchange
	Problem string    `json:"problem"` // why, mostly in the broker's words
	Since   time.Time `json:"since"`   // when it was first refused
}

// part is one thing to declare, with its bindings.
type part struct {
	owner    string // the worker that needs it; "" = the server
	kind     string // as in Undeclared
	name     string
	topology broker.Topology
}

// partKey identifies a part.
type partKey struct{ owner, kind, name string }

func (p *part) key() partKey { return partKey{p.owner, p.kind, p.name} }

// brief returns the text of a declaration error without the part's name at the beginning.
func (p *part) brief(err error) string {
	return brief(err, fmt.Sprintf("declare %s %q: ", p.kind, p.name))
}

// undeclared holds the parts that the broker did not accept, and tries them again on its goroutine.
type undeclared struct {
	log  *slog.Logger
	sup  *supervisor
	wake chan struct{} // signals a new part; holds one

	mu    sync.Mutex // guards what follows; never held across I/O
	died  partKey    // the part being declared when a session died, if it was not declared since
	parts map[partKey]*refusedPart
}

// refusedPart is a part that the broker does not accept.
type refusedPart struct {
	part
	problem string
	since   time.Time
	due     time.Time // when it is tried again
	fatal   bool      // the session ended over it, or at the same moment
	pauses  backoff.BackOff
}

func newUndeclared(log *slog.Logger, sup *supervisor) *undeclared {
	return &undeclared{log: log, sup: sup, wake: make(chan struct{}, 1), parts: make(map[partKey]*refusedPart)}
}

// declare declares parts one by one and notes those that fail. It returns an error only if the session is dead or ctx
// has ended.
func (u *undeclared) declare(ctx context.Context, session broker.Session, parts []part) error {
	bounded, cancel := context.WithTimeout(ctx, declareTimeout)
	defer cancel()
	for i := range parts {
		p := &parts[i]
		switch {
		case u.postponed(p):
		case ctx.Err() != nil:
			return ctx.Err()
		case bounded.Err() != nil:
			u.note(p, errNotYet, false, false)
		default:
			if err := u.try(bounded, session, p, false); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// try declares one part. It returns an error only if the session is dead.
func (u *undeclared) try(ctx context.Context, session broker.Session, p *part, again bool) error {
	ctx, cancel := context.WithTimeout(ctx, declareEach)
	defer cancel()
	err := session.Declare(ctx, p.topology)
	dead := session.Err()
	if errors.Is(err, context.Canceled) && dead == nil {
		return nil // nobody wants it any more
	}
	if u.conclusive(p, err == nil, dead != nil) {
		u.note(p, err, dead != nil, again)
	}
	return dead
}

// conclusive reports whether the outcome of a declaration says something about the part. If the session died meanwhile,
// only the second such outcome in a row does.
func (u *undeclared) conclusive(p *part, accepted, dead bool) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	before := u.died
	if dead && !accepted {
		u.died = p.key()
		return before == p.key()
	}
	if before == p.key() {
		u.died = partKey{}
	}
	return true
}

// postponed reports whether a part has to wait because a session ended over it: it would end this session before it is
// used. RabbitMQ ends the connection (541) if it cannot make a quorum queue for want of a majority.
func (u *undeclared) postponed(p *part) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	r := u.parts[p.key()]
	return r != nil && r.fatal && time.Now().Before(r.due)
}

// note records the outcome of a declaration, and logs it if it has changed. With again, it ignores the outcome of a
// part that was forgotten meanwhile.
func (u *undeclared) note(p *part, err error, fatal, again bool) {
	u.mu.Lock()
	r := u.parts[p.key()]
	if again && r == nil {
		u.mu.Unlock()
		return
	}
	before := ""
	if r != nil {
		before = r.problem
	}
	switch {
	case err == nil:
		delete(u.parts, p.key())
	case r == nil:
		r = &refusedPart{since: time.Now(), pauses: reconnectPauses(0)}
		u.parts[p.key()] = r
		fallthrough
	default:
		r.part, r.problem, r.fatal, r.due = *p, p.brief(err), fatal, time.Now().Add(pauseAfter(err, r.pauses))
	}
	u.mu.Unlock()
	switch {
	case err == nil && before != "":
		u.log.Info("declared again", p.kind, p.name)
	case err != nil && p.brief(err) != before:
		u.log.Warn("cannot be declared; trying again, and everything else goes on", p.kind, p.name, "err", p.brief(err))
		u.changed()
	}
}

// redeclare schedules parts to be declared again, in order, although they were accepted before.
func (u *undeclared) redeclare(parts []part, why error) {
	now := time.Now()
	u.mu.Lock()
	fresh := false
	for i := range parts {
		if u.parts[parts[i].key()] == nil {
			fresh = true
			u.parts[parts[i].key()] = &refusedPart{part: parts[i], problem: why.Error(), since: now, due: now.Add(time.Duration(i)), pauses: reconnectPauses(0)}
		}
	}
	u.mu.Unlock()
	if !fresh {
		return
	}
	u.log.Warn("declaring again", parts[0].kind, parts[0].name, "err", why)
	u.changed()
}

// changed wakes run.
func (u *undeclared) changed() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// forget drops the parts of a worker that has ended.
func (u *undeclared) forget(owner string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.DeleteFunc(u.parts, func(key partKey, _ *refusedPart) bool { return key.owner == owner })
}

// list returns the parts that are refused now, by name.
func (u *undeclared) list() []Undeclared {
	u.mu.Lock()
	defer u.mu.Unlock()
	var list []Undeclared
	for _, r := range u.parts {
		list = append(list, Undeclared{r.kind, r.name, r.problem, r.since})
	}
	slices.SortFunc(list, func(a, b Undeclared) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Kind, b.Kind), a.Since.Compare(b.Since))
	})
	// Several workers may need the same queue.
	return slices.CompactFunc(list, func(a, b Undeclared) bool { return a.Name == b.Name && a.Kind == b.Kind })
}

// next returns the part to try next, and how long to wait for it.
func (u *undeclared) next() (p *part, wait time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	var first *refusedPart
	for _, r := range u.parts {
		if first == nil || r.due.Before(first.due) {
			first = r
		}
	}
	if first == nil {
		return nil, 0
	}
	again := first.part
	return &again, time.Until(first.due)
}

// run tries the parts again until the supervision has ended.
func (u *undeclared) run() {
	var dead broker.Session
	for {
		p, wait := u.next()
		timer := time.NewTimer(wait)
		due := timer.C
		if p == nil {
			due = nil
		}
		select {
		case <-due:
			session, err := u.sup.await(context.Background(), dead)
			if err != nil {
				return // closed, or given up
			}
			// A new session declares everything first, so this part may be declared already.
			if u.still(p) && u.try(context.Background(), session, p, true) != nil {
				dead = session
			}
		case <-u.wake:
		case <-u.sup.ended:
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// still reports whether a part is to be tried now.
func (u *undeclared) still(p *part) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	r := u.parts[p.key()]
	return r != nil && !time.Now().Before(r.due)
}
