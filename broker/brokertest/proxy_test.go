package brokertest

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// echo is a server that sends back all that it receives. When a connection ends, its error goes to ended. The error is
// nil after the client's FIN.
type echo struct {
	net.Listener
	ended chan error
}

func newEcho(t *testing.T) *echo {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{Listener: l, ended: make(chan error, 1000)}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				_, err := io.Copy(conn, conn)
				e.ended <- err
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); running.Wait() }) // runs after the proxy's cleanup, which ends the connections
	return e
}

// proxied connects a client to an echo server through a proxy.
func proxied(t *testing.T) (*Proxy, *echo, net.Conn) {
	t.Helper()
	t.Parallel()
	e := newEcho(t)
	p := NewProxy(t, e.Addr().String())
	return p, e, dial(t, p)
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

func wantRead(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	buf := make([]byte, len(text))
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != text {
		t.Fatalf("read %q, %v, want %q", buf, err, text)
	}
}

// wantSilence checks that neither a byte nor the end of the connection arrives, for a time that is long on a loopback.
func wantSilence(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	var timeout net.Error
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("read %d bytes, %v, want silence", n, err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
}

func wantReset(t *testing.T, side string, err error) {
	t.Helper()
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("%s got %v, want a reset", side, err)
	}
}

// wantRefused checks that a new connection is reset, possibly before the dial returns.
func wantRefused(t *testing.T, p *Proxy) {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err == nil {
		_, err = io.Copy(io.Discard, conn)
		_ = conn.Close()
	}
	wantReset(t, "a new connection", err)
}

// wantCut checks that both sides of a connection have been reset.
func wantCut(t *testing.T, e *echo, conn net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, conn)
	wantReset(t, "the client", err)
	wantReset(t, "the server", e.end(t))
}

func (e *echo) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-e.ended:
		return err
	case <-time.After(patience):
		t.Fatal("waited in vain for the end of a connection at the server")
		return nil
	}
}

func TestProxyForwards(t *testing.T) {
	p, e, conn := proxied(t)
	text := strings.Repeat("0123456789", 100_000)
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() {
		if _, err := io.WriteString(conn, text); err != nil {
			t.Error(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != text {
		t.Errorf("got %d bytes, %v, want the %d sent and EOF", len(got), err, len(text))
	}
	if err := e.end(t); err != nil {
		t.Errorf("the server got %v, want EOF", err)
	}
	if n := p.Accepted(); n != 1 {
		t.Errorf("%d connections accepted, want one", n)
	}
}

func TestProxyPassesAResetOn(t *testing.T) {
	_, e, conn := proxied(t)
	send(t, conn, "hello")
	wantRead(t, conn, "hello")
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
	wantReset(t, "the server", e.end(t))
}

func TestProxyCutResetsBothSides(t *testing.T) {
	p, e, conn := proxied(t)
	send(t, conn, "hello")
	wantRead(t, conn, "hello")
	if n := p.Connections(); n != 1 {
		t.Errorf("%d connections before the cut", n)
	}
	p.Cut()
	if n := p.Connections(); n != 0 {
		t.Errorf("%d connections after the cut", n)
	}
	wantCut(t, e, conn)

	again := dial(t, p)
	send(t, again, "again")
	wantRead(t, again, "again")
}

// Cut also resets a connection whose writer is blocked because nobody reads.
func TestProxyCutsInTheMiddleOfAWrite(t *testing.T) {
	p, _, conn := proxied(t)
	p.Stall(true)
	failed := make(chan error)
	go func() {
		text := strings.Repeat("x", 1<<20)
		for {
			if _, err := io.WriteString(conn, text); err != nil {
				failed <- err
				return
			}
		}
	}()
	wantSilence(t, conn)
	p.Cut()
	wantReset(t, "the writer", <-failed)
}

func TestProxyCutsAfterSomeBytes(t *testing.T) {
	p, e, conn := proxied(t)
	send(t, conn, "12345")
	wantRead(t, conn, "12345")
	p.CutAfter(8)
	send(t, conn, "12345")
	wantRead(t, conn, "12345")
	send(t, conn, "678901")
	wantCut(t, e, conn)

	again := dial(t, p) // CutAfter cuts only once
	send(t, again, strings.Repeat("x", 100))
	wantRead(t, again, strings.Repeat("x", 100))
	p.CutAfter(0)
	p.CutAfter(-1)
	send(t, again, "more")
	wantRead(t, again, "more")
}

func TestProxyStallHoldsAndReleases(t *testing.T) {
	p, e, conn := proxied(t)
	send(t, conn, "before")
	wantRead(t, conn, "before")
	p.Stall(true)
	p.Stall(true)
	send(t, conn, "held")
	fresh := dial(t, p)
	send(t, fresh, "fresh")
	wantSilence(t, conn)
	wantSilence(t, fresh)
	p.Stall(false)
	p.Stall(false)
	wantRead(t, conn, "held")
	wantRead(t, fresh, "fresh")

	p.Stall(true)
	_ = fresh.Close()
	select {
	case err := <-e.ended:
		t.Errorf("the server noticed the end of a connection during the stall: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	p.Stall(false)
	if err := e.end(t); err != nil {
		t.Errorf("the server got %v, want EOF", err)
	}
	send(t, conn, "after")
	wantRead(t, conn, "after")
}

func TestProxyClosesWhileStalled(t *testing.T) {
	p, e, conn := proxied(t)
	send(t, conn, "hello")
	wantRead(t, conn, "hello")
	p.Stall(true)
	send(t, conn, "held")
	fresh := dial(t, p)
	var closing sync.WaitGroup
	for range 3 {
		closing.Go(p.Close)
	}
	closing.Wait()
	wantCut(t, e, conn)
	_, err := io.Copy(io.Discard, fresh)
	wantReset(t, "the connection made during the stall", err)
	if _, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial a closed proxy: %v", err)
	}
}

func TestProxyRefuses(t *testing.T) {
	p, _, conn := proxied(t)
	send(t, conn, "hello")
	wantRead(t, conn, "hello")
	p.Refuse(true)
	wantRefused(t, p)
	if accepted, open := p.Accepted(), p.Connections(); accepted != 2 || open != 1 {
		t.Errorf("%d accepted and %d open, want 2 and 1", accepted, open)
	}
	send(t, conn, "still")
	wantRead(t, conn, "still")
	p.Refuse(false)
	fresh := dial(t, p)
	send(t, fresh, "hello")
	wantRead(t, fresh, "hello")
}

func TestProxyResetsClientsOfADeadTarget(t *testing.T) {
	t.Parallel()
	e := newEcho(t)
	p := NewProxy(t, e.Addr().String())
	_ = e.Close()
	wantRefused(t, p)
}

func TestProxyTakesManyConnectionsAtOnce(t *testing.T) {
	t.Parallel()
	const n = 100
	e := newEcho(t)
	p := NewProxy(t, e.Addr().String())
	var ready, cut, over sync.WaitGroup
	cut.Add(1)
	for range n {
		conn := dial(t, p)
		ready.Add(1)
		over.Go(func() {
			text, buf := strings.Repeat("x", 10_000), make([]byte, 10_000)
			_, werr := io.WriteString(conn, text)
			_, rerr := io.ReadFull(conn, buf)
			if werr != nil || rerr != nil || string(buf) != text {
				t.Errorf("write: %v; read: %v", werr, rerr)
			}
			ready.Done()
			cut.Wait()
			_, err := io.Copy(io.Discard, conn)
			wantReset(t, "a client", err)
		})
	}
	ready.Wait()
	if accepted, open := p.Accepted(), p.Connections(); accepted != n || open != n {
		t.Errorf("%d accepted and %d open", accepted, open)
	}
	p.Cut()
	cut.Done()
	over.Wait()
	for range n {
		wantReset(t, "the server", e.end(t))
	}
}

// All faults may be set at once and in any order. Nothing hangs, nothing races and every connection ends.
func TestProxyKnobsMayBeTurnedAtAnyTime(t *testing.T) {
	t.Parallel()
	e := newEcho(t)
	p := NewProxy(t, e.Addr().String())
	var clients, knobs sync.WaitGroup
	stop := make(chan struct{})
	for i, turn := range []func(on bool){p.Stall, p.Refuse, func(bool) { p.Cut() }, func(bool) { p.CutAfter(100) }, func(bool) { p.Connections() }} {
		knobs.Go(func() {
			tick := time.NewTicker(time.Duration(i+1) * 300 * time.Microsecond)
			defer tick.Stop()
			for on := true; ; on = !on {
				select {
				case <-stop:
					turn(false)
					return
				case <-tick.C:
					turn(on)
				}
			}
		})
	}
	for range 8 {
		clients.Go(func() {
			for range 25 {
				conn, err := net.Dial("tcp", p.Addr())
				if err != nil {
					continue // reset before the dial returned
				}
				_, _ = io.WriteString(conn, strings.Repeat("x", 1000))
				_ = conn.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			}
		})
	}
	clients.Wait()
	close(stop)
	knobs.Wait()
	p.CutAfter(-1)
	conn := dial(t, p)
	send(t, conn, "at rest")
	wantRead(t, conn, "at rest")
}
