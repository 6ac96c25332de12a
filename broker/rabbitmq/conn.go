package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// conn is one AMQP connection and the socket under it.
type conn struct {
	*amqp.Connection
	role    string // "publish" or "consume"
	socket  *socket
	out     *outgoing          // of a publish connection
	notes   *notes             // about what the client reads
	marker  string             // see frames
	closes  chan *amqp.Error   // the client reports the end of the connection here
	blocked chan amqp.Blocking // and here that the broker blocks it
}

// dial opens one connection within dialTimeout and ctx.
func (b *Broker) dial(ctx context.Context, a address, role string) (*conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, fmt.Errorf("no connection after %v", dialTimeout))
	defer cancel()
	var s *socket
	var in *frames
	var out *outgoing
	// The client waits for the handshake as long as the socket does, and takes no context.
	stop := func() bool { return true }
	defer func() { stop() }()
	cfg := amqp.Config{
		Heartbeat: b.heartbeat,
		Locale:    "en_US",
		// The client writes into its Properties and TLS configuration, so each dial has its own.
		Properties: amqp.Table{
			"product":         "dispatcher",
			"platform":        "Go",
			"connection_name": b.cfg.ConnectionName + " " + role,
		},
		Vhost: a.vhost,
		Dial: func(network, addr string) (net.Conn, error) {
			raw, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			s = &socket{Conn: a.listen(raw)}
			stop = context.AfterFunc(ctx, s.kill)
			c, err := b.secure(ctx, s, a)
			if err != nil {
				return nil, err
			}
			if role == "publish" {
				out = &outgoing{Conn: c}
				c = out
			}
			in = newFrames(c)
			return in, nil
		},
	}
	ac, err := amqp.DialConfig(a.clear, cfg)
	if err != nil {
		if s != nil {
			s.kill() // the client leaves the socket of a failed handshake open
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, dialError(a, err)
	}
	in.agree(ac.Config.FrameSize) // no message has come yet
	c := &conn{Connection: ac, role: role, socket: s, out: out, notes: &in.notes, marker: in.marker}
	c.closes = ac.NotifyClose(make(chan *amqp.Error, 1))
	c.blocked = ac.NotifyBlocked(make(chan amqp.Blocking, 4))
	// From here on the peer must send something within two heartbeats. If the URL or the broker turns heartbeats off,
	// there is no limit.
	s.patience.Store(int64(2 * ac.Config.Heartbeat))
	return c, nil
}

// cut ends a connection that belongs to no session.
func (c *conn) cut() {
	c.socket.kill()
	<-c.closes
}

// socket is the net.Conn under the client. The client does not bound a write, and a write that blocks holds up
// everything else, its own shutdown included. Nor does it find every dead peer: it sets its read deadline after a frame
// was read, so a peer that falls silent before the first is never found. So deadlines are set here, and only here.
type socket struct {
	net.Conn
	patience atomic.Int64          // how long the peer may neither send nor take anything; 0 = for ever
	cause    atomic.Pointer[error] // why it was given up here; nil = it was not
	blocked  atomic.Bool           // the broker has announced that it reads nothing, and checks no heartbeats
	dead     atomic.Bool
}

func (s *socket) deadline() time.Time {
	if p := time.Duration(s.patience.Load()); p > 0 {
		return time.Now().Add(p)
	}
	return time.Time{}
}

// Read bounds the wait for the next byte.
func (s *socket) Read(b []byte) (int, error) {
	_ = s.Conn.SetReadDeadline(s.deadline())
	n, err := s.Conn.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = s.giveUp(fmt.Errorf("the broker has sent nothing for %v", time.Duration(s.patience.Load())))
	}
	return n, err
}

// Write bounds the wait until the peer takes more, unless the broker has announced that it takes nothing. To give up
// then would end the session, and redeliver every running task, over an alarm that concerns publishers. After an error
// nothing is written any more, since a frame may be cut in half.
func (s *socket) Write(b []byte) (n int, err error) {
	for {
		_ = s.Conn.SetWriteDeadline(s.deadline())
		m, err := s.Conn.Write(b[n:])
		n += m
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, os.ErrDeadlineExceeded) && (m > 0 || s.blocked.Load()):
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = s.giveUp(fmt.Errorf("the broker has read nothing for %v", time.Duration(s.patience.Load())))
		}
		s.kill()
		return n, err
	}
}

// The client's own deadlines are ignored.
func (s *socket) SetDeadline(time.Time) error      { return nil }
func (s *socket) SetReadDeadline(time.Time) error  { return nil }
func (s *socket) SetWriteDeadline(time.Time) error { return nil }

// giveUp ends the link and keeps the reason, which the client would replace.
func (s *socket) giveUp(cause error) error {
	s.cause.CompareAndSwap(nil, &cause)
	s.kill()
	return cause
}

// kill ends the link at once. Blocked reads and writes return.
func (s *socket) kill() {
	s.dead.Store(true)
	_ = s.Conn.Close()
}
