package rabbitmq

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
)

func methodOf(channel uint16, method uint32, payload ...byte) []byte {
	b := []byte{methodFrame}
	b = binary.BigEndian.AppendUint16(b, channel)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(payload)))
	b = binary.BigEndian.AppendUint32(b, method)
	return append(append(b, payload...), frameEnd)
}

// chopped is a connection from which each Read takes a random part.
type chopped struct {
	net.Conn
	stream *bytes.Reader
	random *rand.Rand
}

func (c *chopped) Read(p []byte) (int, error) {
	return c.stream.Read(p[:1+c.random.IntN(min(len(p), 40))])
}

// An answer is passed on when the client has read all of its frame and reads on, and nothing of the stream changes.
func TestAnswerIsPassedOnWhenTheClientReadsOn(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var stream []byte
	var want []answer
	for i := range 2000 {
		channel := uint16(1 + random.IntN(3))
		tag := binary.BigEndian.AppendUint64(nil, uint64(i))
		switch random.IntN(5) {
		case 0:
			stream = append(stream, methodOf(channel, channelOpenOk, 0, 0, 0, 0)...)
		case 1:
			stream = append(stream, methodOf(channel, 60<<16|60, make([]byte, random.IntN(60))...)...)
		case 2:
			stream = append(stream, methodOf(channel, basicNack, append(tag, 2)...)...)
			want = append(want, answer{channel: channel, tag: uint64(i), nack: true, end: int64(len(stream))})
		default:
			stream = append(stream, methodOf(channel, basicAck, append(tag, 1)...)...)
			want = append(want, answer{channel: channel, tag: uint64(i), multiple: true, end: int64(len(stream))})
		}
	}
	f := newFrames(&chopped{stream: bytes.NewReader(stream), random: random})
	var got []answer
	client := bufio.NewReaderSize(f, 64)
	read := int64(0) // what the client has handled, at least
	hear := func(answers []answer) {
		for _, a := range answers {
			if unread := int64(client.Buffered()); a.end > read+unread {
				t.Errorf("answer %d is passed on at %d of %d bytes", a.tag, read, a.end)
			}
		}
		got = append(got, answers...)
	}
	f.notes.hear.Store(&hear)
	var through []byte
	for b := make([]byte, 50); ; {
		n, err := client.Read(b[:1+random.IntN(50)])
		through = append(through, b[:n]...)
		read += int64(n)
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(through, stream) {
		t.Error("the stream was changed")
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d answers were passed on, want %d", len(got), len(want))
	}
	select {
	case <-f.notes.ended:
	default:
		t.Error("the end was not noted")
	}
}
