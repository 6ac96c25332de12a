package rabbitmq

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
)

// The methods that notes reads: class and method.
const (
	channelOpenOk = 20<<16 | 11
	basicAck      = 60<<16 | 80
	basicNack     = 60<<16 | 120
)

// maxNoted is the payload of an ack or nack: class, method, tag and flags.
const maxNoted = 13

// answer is what the broker says about published messages: an ack or a nack.
type answer struct {
	channel  uint16
	tag      uint64
	multiple bool // also about all earlier messages of the channel
	nack     bool
	end      int64 // of its frame, counted like notes.passed
}

// notes takes the broker's answers from the frames that the client reads. The client could report each answer on a
// channel and a goroutine of its own, or all of them in the order of publishing, so that a queue that does not answer
// would hold up the others.
//
// The client handles all frames that it has before it reads more. So an answer is passed on at the next Read, when the
// client has handled everything that came before it, above all a returned message.
type notes struct {
	hear   atomic.Pointer[func([]answer)] // called on the client's goroutine; nil = nobody listens
	opened atomic.Uint32                  // the channel that was opened last
	ended  chan struct{}                  // closed when the client reads no more
	once   sync.Once

	// Used by Read alone.
	passed  int64 // bytes that the client has read
	answers []answer
	next    int // of answers, to be passed on
}

// method notes a whole frame with a method. end is the number of bytes before the frame's end that the client has not
// read yet.
func (n *notes) method(frame []byte, end int64) {
	channel := binary.BigEndian.Uint16(frame[1:])
	payload := frame[frameHead : len(frame)-frameTail]
	if len(payload) < 4 {
		return
	}
	switch id := binary.BigEndian.Uint32(payload); {
	case id == channelOpenOk:
		n.opened.Store(uint32(channel))
	case (id == basicAck || id == basicNack) && len(payload) == maxNoted:
		n.answers = append(n.answers, answer{
			channel: channel, tag: binary.BigEndian.Uint64(payload[4:]),
			multiple: payload[12]&1 != 0, nack: id == basicNack, end: n.passed + end,
		})
	}
}

// tell passes on the answers that the client has handled.
func (n *notes) tell() {
	if len(n.answers) == 0 {
		return
	}
	from := n.next
	for n.next < len(n.answers) && n.answers[n.next].end <= n.passed {
		n.next++
	}
	if hear := n.hear.Load(); hear != nil && n.next > from {
		(*hear)(n.answers[from:n.next])
	}
	if n.next == len(n.answers) {
		n.answers, n.next = n.answers[:0], 0
	}
}

// end notes that the client reads no more.
func (n *notes) end() { n.once.Do(func() { close(n.ended) }) }
