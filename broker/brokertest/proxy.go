package brokertest

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
)

// Proxy is a network between a client and its broker that fails on demand. It listens on a port of its own on 127.0.0.1
// and passes each TCP connection on to its target, including half-closes and resets, unless one of its methods has set
// a fault. These methods may be called at any time by any goroutine and do not block.
type Proxy struct {
	target   string
	listener net.Listener
	running  sync.WaitGroup // the accept loop and all links

	mu       sync.Mutex // guards the rest
	links    map[*link]struct{}
	accepted int
	refuse   bool
	closed   bool
	gate     chan struct{} // not nil while stalled; closed by the end of the stall
	budget   int           // bytes until CutAfter cuts; negative = for ever
}

// NewProxy starts a proxy to target, a host:port on the loopback interface. It is closed when the test ends.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	addr, err := net.ResolveTCPAddr("tcp", target)
	if err != nil {
		tb.Fatalf("proxy: %v", err)
	}
	if !addr.IP.IsLoopback() {
		tb.Fatalf("proxy: %s is not on the loopback interface", target)
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("proxy: %v", err)
	}
	p := &Proxy{target: addr.String(), listener: listener, links: make(map[*link]struct{}), budget: -1}
	p.running.Go(func() {
		if err := p.accept(); !errors.Is(err, net.ErrClosed) {
			tb.Errorf("proxy: %v", err)
		}
	})
	tb.Cleanup(p.Close)
	return p
}

// Addr returns the host:port to connect to.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Cut resets all open connections (RST, not FIN) on both sides, even in the middle of a transfer. Bytes in flight are
// lost, and both ends get ECONNRESET. Later connections are not affected.
func (p *Proxy) Cut() {
	p.mu.Lock()
	links := slices.Collect(maps.Keys(p.links))
	clear(p.links)
	p.mu.Unlock()
	for _, l := range links {
		l.reset()
	}
}

// CutAfter cuts all connections, as [Proxy.Cut] does, after n more bytes from clients, counted over all connections.
// The cut may be in the middle of a frame. The target gets n bytes, or fewer if the reset overtakes them. It cuts once.
// A second call replaces the first, and a negative n cancels it.
func (p *Proxy) CutAfter(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.budget = n
}

// Stall pulls the cable until Stall(false): nothing passes in either direction, and neither side notices. No connection
// ends, and if one side ends its own, the other does not notice. New connections are accepted and stalled too. When the
// stall ends, the held bytes are passed on, as TCP does when the cable is back. Bytes sent after Stall(true) has
// returned are held. Bytes sent before may still pass.
func (p *Proxy) Stall(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case on && p.gate == nil:
		p.gate = make(chan struct{})
	case !on && p.gate != nil:
		close(p.gate)
		p.gate = nil
	}
}

// Refuse makes the proxy reset new connections at once, until Refuse(false): the dial, or the first read or write after
// it, fails. Open connections stay.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = on
}

// Connections returns how many connections are open now.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Accepted returns how many connections clients have made so far, including refused ones.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Close resets all connections, accepts no more and waits until all goroutines of the proxy have ended, including
// stalled ones.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	_ = p.listener.Close()
	p.Cut()
	p.running.Wait()
}

func (p *Proxy) accept() error {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return err
		}
		l := &link{proxy: p, client: conn.(*net.TCPConn)}
		l.ctx, l.end = context.WithCancel(context.Background())
		p.mu.Lock()
		p.accepted++
		refused := p.refuse || p.closed
		if !refused {
			p.links[l] = struct{}{}
		}
		p.mu.Unlock()
		if refused {
			l.reset()
			continue
		}
		p.running.Go(l.run)
	}
}

// pass waits while the proxy is stalled and reports whether the link is still open.
func (p *Proxy) pass(l *link) bool {
	p.mu.Lock()
	gate := p.gate
	p.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-l.ctx.Done():
		}
	}
	return l.ctx.Err() == nil
}

// spend takes n bytes from the budget of CutAfter. It returns how many may pass and whether to cut then.
func (p *Proxy) spend(n int) (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.budget < 0:
		return n, false
	case p.budget > n:
		p.budget -= n
		return n, false
	default:
		n, p.budget = p.budget, -1
		return n, true
	}
}

// link is a client's connection together with its connection to the target.
type link struct {
	proxy  *Proxy
	client *net.TCPConn
	ctx    context.Context // over when the link is reset
	end    context.CancelFunc

	mu     sync.Mutex // serializes reset and the arrival of the target's connection
	target *net.TCPConn
}

func (l *link) run() {
	defer func() {
		l.end()
		l.proxy.mu.Lock()
		delete(l.proxy.links, l)
		l.proxy.mu.Unlock()
	}()
	if !l.proxy.pass(l) || !l.dial() {
		l.reset()
		return
	}
	var back sync.WaitGroup
	back.Go(func() { l.pump(l.client, l.target, nil) })
	l.pump(l.target, l.client, l.proxy.spend)
	back.Wait()
	_ = l.client.Close()
	_ = l.target.Close()
}

func (l *link) dial() bool {
	conn, err := new(net.Dialer).DialContext(l.ctx, "tcp", l.proxy.target)
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.target = conn.(*net.TCPConn)
	return l.ctx.Err() == nil
}

// pump passes on the bytes of src until it ends. An irregular end resets the link.
func (l *link) pump(dst, src *net.TCPConn, spend func(int) (int, bool)) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if !l.proxy.pass(l) {
			return
		}
		cut := false
		if n > 0 && spend != nil {
			n, cut = spend(n)
		}
		if _, werr := dst.Write(buf[:n]); werr != nil {
			err = werr
		}
		switch {
		case cut:
			l.proxy.Cut()
			return
		case err == io.EOF:
			_ = dst.CloseWrite()
			return
		case err != nil:
			l.reset()
			return
		}
	}
}

// reset ends the link with RST on both sides, at any time.
func (l *link) reset() {
	l.end()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range []*net.TCPConn{l.client, l.target} {
		if c != nil {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
}
