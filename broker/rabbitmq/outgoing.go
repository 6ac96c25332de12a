package rabbitmq

import (
	"context"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
)

// roomy is how many bytes may wait for the socket before messages wait for room. Beyond it there is at most one message
// per port.
const roomy = 64 << 10

// outgoing is a connection whose Write only queues the bytes. A goroutine writes them, everything that is queued in
// one call of the socket. So publishers that wait for each other share a system call, and none of them waits for a
// peer that takes nothing. After the first error nothing is written any more.
type outgoing struct {
	net.Conn
	flushing tally // 0 or 1

	queued atomic.Int64 // bytes that Write has taken
	handed atomic.Int64 // bytes that were given to the socket, which may have written them

	mu      sync.Mutex // guards the fields below
	waiting []byte     // to be written next
	spare   []byte     // the buffer before it, to be used again
	running bool       // flush is
	room    chan struct{}
	err     error
}

// Write implements [net.Conn]. It never blocks: the client calls it under its lock, so others would wait for longer than
// their contexts.
func (o *outgoing) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return 0, o.err
	}
	o.waiting = append(o.waiting, b...)
	o.queued.Add(int64(len(b)))
	if !o.running {
		o.running = true
		o.flushing.add()
		go o.flush()
	}
	return len(b), nil
}

// flush writes what is queued, until nothing is.
func (o *outgoing) flush() {
	defer o.flushing.done()
	for {
		runtime.Gosched() // to those who are about to queue more
		o.mu.Lock()
		b := o.waiting
		if len(b) == 0 || o.err != nil {
			o.running = false
			o.mu.Unlock()
			return
		}
		o.waiting, o.spare = o.spare[:0], nil
		o.makeRoom()
		o.mu.Unlock()
		o.handed.Add(int64(len(b)))
		_, err := o.Conn.Write(b)
		o.mu.Lock()
		if cap(b) <= 4*roomy {
			o.spare = b
		}
		if err != nil {
			o.err = err
			o.makeRoom()
		}
		o.mu.Unlock()
	}
}

// awaitRoom returns a channel that is closed when the socket takes more. The caller holds mu.
func (o *outgoing) awaitRoom() <-chan struct{} {
	if o.room == nil {
		o.room = make(chan struct{})
	}
	return o.room
}

// makeRoom wakes those who wait for room. The caller holds mu.
func (o *outgoing) makeRoom() {
	if o.room != nil {
		close(o.room)
		o.room = nil
	}
}

// full reports whether messages must wait.
func (o *outgoing) full() bool { return o.queued.Load()-o.handed.Load() > roomy }

// pass waits until a message may be written.
func (o *outgoing) pass(ctx context.Context, over <-chan struct{}) error {
	for o.full() {
		o.mu.Lock()
		if len(o.waiting) <= roomy || o.err != nil { // a writer will find the error
			o.mu.Unlock()
			return nil
		}
		room := o.awaitRoom()
		o.mu.Unlock()
		if err := await(ctx, over, room); err != nil {
			return err
		}
	}
	return nil
}
