package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

const (
	// silentStart is the head start of a node that has sent nothing: a frozen host may accept connections, or its
	// network may drop them. RFC 8305 (Happy Eyeballs) recommends 250 ms.
	silentStart = 250 * time.Millisecond
	// heardStart is the head start of a node that has sent something. Opening two connections takes about fifteen round
	// trips, and after the death of a node all its clients come at once. More dials would only slow the other nodes
	// down.
	heardStart = 3 * time.Second
	// shunTime is how long a node that failed is tried last.
	shunTime = 30 * time.Second
)

// Open makes a session with one node. It tries the nodes in random order, and those that failed in the last 30 s at the
// end. It tries the next one when the one before has failed, or after a head start of 250 ms, or 3 s once that node has
// sent something. The first node to open wins. The error lists what happened at each node. It is never permanent:
// RabbitMQ closes the link on a wrong password in much the same way as on an overload, and a missing user or virtual
// host may be about to be created.
func (b *Broker) Open(ctx context.Context) (broker.Session, error) {
	racing, finish := context.WithCancel(ctx)
	defer finish()
	n := len(b.addresses)
	r := race{
		b:     b,
		ctx:   racing,
		left:  b.shunned.order(n),
		began: make(map[int]time.Time, n),
		news:  make(chan news, 2*n),
	}
	s := r.run(finish)
	if s != nil {
		return s, nil
	}
	if err := ctx.Err(); err != nil {
		r.problems = append(r.problems, err)
	}
	return nil, fmt.Errorf("open session: %w", errors.Join(r.problems...))
}

// race is one Open. It has one goroutine for each node tried. All have ended when run returns.
type race struct {
	b        *Broker
	ctx      context.Context
	left     []int             // addresses that were not tried yet
	latest   int               // the address that was tried last
	began    map[int]time.Time // when each address that has sent nothing since was tried
	running  int               // tries under way
	news     chan news         // has room for all news
	problems []error
}

// news is an event of a try: first perhaps that the node has sent something, and finally its outcome.
type news struct {
	address int
	over    bool
	session *session
	err     error
}

// run tries the addresses until one is open, and then calls finish to end the other tries.
func (r *race) run(finish func()) (winner *session) {
	headStart := time.NewTimer(0)
	defer headStart.Stop()
	for r.running > 0 || len(r.left) > 0 && r.ctx.Err() == nil {
		select {
		case n := <-r.news:
			switch {
			case !n.over:
				delete(r.began, n.address)
				if n.address == r.latest {
					headStart.Reset(heardStart)
				}
				continue
			case n.err != nil:
				r.failed(n)
				headStart.Reset(0)
			case winner == nil:
				winner = n.session
				finish()
			default: // it came in the same moment
				ctx, cancel := context.WithTimeout(context.Background(), silentStart)
				_ = n.session.Close(ctx)
				cancel()
			}
			r.running--
		case <-headStart.C:
			if winner == nil && r.ctx.Err() == nil && len(r.left) > 0 {
				r.start()
				headStart.Reset(silentStart)
			}
		}
	}
	return winner
}

// start tries the next address.
func (r *race) start() {
	i := r.left[0]
	r.left, r.latest = r.left[1:], i
	r.running++
	r.began[i] = time.Now()
	a := r.b.addresses[i]
	a.heard = sync.OnceFunc(func() { r.news <- news{address: i} })
	go func() {
		s, err := r.b.open(r.ctx, a, r.b.leaver(i))
		r.news <- news{address: i, over: true, session: s, err: err}
	}()
}

// failed records why a node could not be used. If its try was cancelled, the node is shunned only if it was silent for
// its whole head start.
func (r *race) failed(n news) {
	began, silent := r.began[n.address]
	if r.ctx.Err() == nil || silent && time.Since(began) >= silentStart {
		r.b.shunned.add(n.address)
	}
	r.problems = append(r.problems, fmt.Errorf("%s: %w", r.b.addresses[n.address].place, n.err))
}

// open makes the two connections of a session with one node.
func (b *Broker) open(ctx context.Context, a address, leave func() bool) (*session, error) {
	publish, err := b.dial(ctx, a, "publish")
	if err != nil {
		return nil, err
	}
	consume, err := b.dial(ctx, a, "consume")
	if err != nil {
		publish.cut()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { publish.socket.kill(); consume.socket.kill() })
	defer stop()
	s, err := newSession(b.cfg.QueueType, a.memory, publish, consume, leave)
	if err != nil {
		publish.cut()
		consume.cut()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	s.node = a.place
	return s, nil
}

// shunned remembers which addresses failed recently. The zero value is ready.
type shunned struct {
	mu    sync.Mutex
	until map[int]time.Time
}

func (x *shunned) add(address int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if until := time.Now().Add(shunTime); until.After(x.until[address]) {
		x.note(address, until)
	}
}

// note is called with mu locked.
func (x *shunned) note(address int, until time.Time) {
	if x.until == nil {
		x.until = make(map[int]time.Time)
	}
	x.until[address] = until
}

// order puts n addresses into random order, shunned ones last.
func (x *shunned) order(n int) []int {
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now()
	last := func(i int) int {
		if x.until[i].After(now) {
			return 1
		}
		return 0
	}
	order := rand.Perm(n)
	slices.SortStableFunc(order, func(i, j int) int { return last(i) - last(j) })
	return order
}

// listened is a net.Conn that calls heard when the peer has sent something.
type listened struct {
	net.Conn
	heard func()
}

func (l listened) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if n > 0 {
		l.heard()
	}
	return n, err
}

// listen makes c call a.heard when the peer has sent something.
func (a *address) listen(c net.Conn) net.Conn {
	if a.heard == nil {
		return c
	}
	return listened{c, a.heard}
}
