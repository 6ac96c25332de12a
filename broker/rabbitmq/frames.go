package rabbitmq

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync/atomic"
)

// The parts of an AMQP frame: type, channel and size, then the payload, then an octet that ends it.
const (
	frameHead    = 7
	frameTail    = 1
	frameExtra   = frameHead + frameTail
	frameEnd     = 0xCE
	methodFrame  = 1
	headerFrame  = 2        // the type of a frame with the properties of a message
	framesBuffer = 16 << 10 // the client's own buffer has 4 KiB, so this saves reads
)

// maxHeaderPayload is more than RabbitMQ sends. It accepts no message above 512 MiB, whatever its configuration, and
// turns the application properties of a message that came over AMQP 1.0 into headers.
const maxHeaderPayload = 512 << 20

// frames is a connection that replaces headers that the client cannot read, before the client reads them. The client
// ends the connection over a message with such headers, the broker requeues that message, and the next connection would
// end the same way. Everything else passes unchanged.
//
// RabbitMQ checks less than the client: it accepts headers of any depth and any number of entries, and it adds x-death
// to headers that almost fill a frame. headerFault lists everything that the client refuses.
type frames struct {
	net.Conn
	in     *bufio.Reader
	marker string       // name of the header that holds the reason; see newMarker
	limit  atomic.Int64 // bytes of payload that the client accepts; its default until both sides have agreed

	// Used by Read alone, which the client calls on one goroutine.
	pass  int64  // bytes that may go through next; perhaps more than have arrived
	out   []byte // goes through before them
	notes notes
}

func newFrames(c net.Conn) *frames {
	f := &frames{Conn: c, in: bufio.NewReaderSize(c, framesBuffer), marker: newMarker()}
	f.notes.ended = make(chan struct{})
	f.agree(128 << 10)
	return f
}

// agree sets frame_max.
func (f *frames) agree(frameMax int) { f.limit.Store(int64(frameMax) - frameExtra) }

// Close implements [net.Conn]. The client calls it after its last Read.
func (f *frames) Close() error {
	f.notes.end()
	return f.Conn.Close()
}

// Read implements [net.Conn].
func (f *frames) Read(p []byte) (n int, err error) {
	f.notes.tell()
	defer func() {
		if err != nil {
			f.notes.end()
		}
	}()
	for {
		switch {
		case len(f.out) > 0:
			n = copy(p, f.out)
			if f.out = f.out[n:]; len(f.out) == 0 {
				f.out = nil
			}
			return n, nil
		case f.pass > 0:
			n, err = f.in.Read(p[:min(int64(len(p)), f.pass)])
			f.pass -= int64(n)
			f.notes.passed += int64(n)
			return n, err
		}
		if err := f.scan(); err != nil {
			return 0, err
		}
	}
}

// scan examines the frames that have arrived, and decides how many bytes may pass. It waits for more only if none may.
func (f *frames) scan() error {
	for {
		if f.pass > 0 && int64(f.in.Buffered()) < f.pass+frameHead {
			return nil
		}
		b, err := f.in.Peek(int(f.pass) + frameHead)
		if err != nil {
			return f.broken(len(b), err)
		}
		typ, size := b[f.pass], int64(binary.BigEndian.Uint32(b[f.pass+3:]))
		whole := f.pass + frameExtra + size
		switch {
		case typ == methodFrame && size <= maxNoted:
			if whole > int64(f.in.Buffered()) && f.pass > 0 {
				return nil
			}
			if b, err = f.in.Peek(int(whole)); err != nil {
				return f.broken(len(b), err)
			}
			f.notes.method(b[f.pass:], whole)
			f.pass = whole
			continue
		case typ != headerFrame:
			f.pass = whole
			continue
		case size <= f.limit.Load() && whole <= int64(f.in.Buffered()):
			b, _ = f.in.Peek(int(whole))
			if sound(b[f.pass:]) {
				f.pass = whole
				continue
			}
		}
		if f.pass > 0 { // first the frames before it
			return nil
		}
		return f.header(size)
	}
}

// broken passes on the beginning of a frame that the end of the connection has cut off. The client then meets the error
// itself.
func (f *frames) broken(n int, err error) error {
	if n == 0 {
		return err
	}
	f.pass = int64(n)
	return nil
}

// sound reports whether the client can read a whole header frame. A frame without its end passes, since the client
// itself refuses it.
func sound(frame []byte) bool {
	return frame[len(frame)-1] != frameEnd || inspect(frame[frameHead:len(frame)-frameTail]) == headerFault{}
}

// header handles the header frame that comes next, and waits for all of it.
func (f *frames) header(size int64) error {
	switch {
	case size > maxHeaderPayload:
		f.pass = frameHead // the client refuses the size
		return nil
	case size > f.limit.Load():
		return f.shrink(size)
	}
	frame := make([]byte, size+frameExtra)
	n, err := io.ReadFull(f.in, frame)
	if err != nil && n == 0 {
		return err
	}
	f.out = frame[:n]
	if err == nil && !sound(frame) {
		payload := frame[frameHead : len(frame)-frameTail]
		front, table, after := split(payload)
		f.out = f.replacement(frame[:frameHead], front, table, after, inspect(payload).String())
	}
	return nil
}

var errFrameEnd = errors.New("a frame from the broker does not end where it should")

// shrink replaces a header frame that is larger than the client accepts. It keeps no more than half a frame in memory.
func (f *frames) shrink(size int64) error {
	var head [frameHead]byte
	if _, err := io.ReadFull(f.in, head[:]); err != nil {
		return err
	}
	left := size
	take := func(n int64) ([]byte, error) {
		b := make([]byte, min(n, left))
		_, err := io.ReadFull(f.in, b)
		left -= int64(len(b))
		return b, err
	}
	skip := func(n int64) error {
		n = min(n, left)
		for left -= n; n > 0; {
			d, err := f.in.Discard(int(min(n, framesBuffer)))
			if n -= int64(d); err != nil {
				return err
			}
		}
		return nil
	}
	peeked, err := f.in.Peek(int(min(left, fixedPart+2*(1+maxName)+4)))
	if err != nil {
		return err
	}
	front, rest, ok := splitFront(peeked)
	hasTable := ok && binary.BigEndian.Uint16(front[flagsAt:])&flagHeaders != 0
	var tableSize int64
	if hasTable {
		if ok = len(rest) >= 4; ok {
			tableSize = int64(binary.BigEndian.Uint32(rest))
		}
	}
	var table, after []byte
	front, err = take(int64(len(front))) // the next read invalidates the peeked bytes
	if err == nil && hasTable && ok {
		if err = skip(4); err == nil {
			ok = tableSize <= left
			table, err = take(min(tableSize, f.limit.Load()/2))
		}
		if err == nil {
			err = skip(tableSize - int64(len(table)))
		}
	}
	if err == nil && ok {
		after, err = take(maxProperties)
	}
	if err == nil {
		err = skip(left)
	}
	var end byte
	if err == nil {
		end, err = f.in.ReadByte()
	}
	if err != nil {
		return err
	}
	if end != frameEnd {
		return errFrameEnd
	}
	f.out = f.replacement(head[:], front, table, after, tooLargeHeaders(size+frameExtra, f.limit.Load()+frameExtra))
	return nil
}
