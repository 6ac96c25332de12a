package rabbitmq

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The client can read every frame that passes the filter, and every frame that the filter replaces. The client itself
// is the judge.
func FuzzFrames(f *testing.F) {
	for _, table := range [][]byte{
		nil, everyType(), nested('F', 32), nested('F', 33), nested('A', 33), listField(8192), listField(8193), manyEntries(20), manyEntries(8193), entry("n", []byte("L12345678")...),
	} {
		f.Add(allProperties(0, table), false)
		f.Add(allProperties(0, table), true)
	}
	clients := map[int]*oracle{}
	f.Cleanup(func() {
		for _, client := range clients {
			client.close()
		}
	})
	f.Fuzz(func(t *testing.T, payload []byte, small bool) {
		limit := 131_072
		if small {
			limit = 4096
		}
		if payload = bytes.Clone(payload); len(payload) >= 12 {
			clear(payload[4:12]) // the message has no body
		}
		out, marker, err := through(t, frame(headerFrame, payload), limit, rand.New(rand.NewPCG(1, uint64(len(payload)))))
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if clients[limit] == nil {
			clients[limit] = &oracle{t: f, limit: limit}
		}
		d, err := clients[limit].read(out)
		if err != nil {
			t.Fatalf("the client cannot read the frame: %v", err)
		}
		_, replaced := d.Headers[marker]
		if (inspect(payload) == headerFault{} && len(payload)+frameExtra <= limit) == replaced {
			t.Fatalf("replaced: %t", replaced)
		}
	})
}

// oracle is the client's own decoder. Its fake broker answers every get with one frame.
type oracle struct {
	t     testing.TB
	limit int
	conn  *amqp.Connection
	ch    *amqp.Channel
	next  []byte
}

func newOracle(t testing.TB, limit int) *oracle {
	o := &oracle{t: t, limit: limit}
	t.Cleanup(o.close)
	return o
}

func (o *oracle) close() {
	if o.conn != nil {
		_ = o.conn.CloseDeadline(time.Now().Add(-time.Second))
		o.conn = nil
	}
}

// read makes the client read the header frame of a message without a body.
func (o *oracle) read(header []byte) (amqp.Delivery, error) {
	if o.conn == nil || o.conn.IsClosed() {
		client, server := net.Pipe()
		go o.serve(server)
		var err error
		if o.conn, err = amqp.Open(client, amqp.Config{SASL: []amqp.Authentication{&amqp.PlainAuth{}}, FrameSize: o.limit, Heartbeat: time.Hour}); err != nil {
			o.t.Fatal(err)
		}
		if o.ch, err = o.conn.Channel(); err != nil {
			o.t.Fatal(err)
		}
	}
	o.next = header
	d, _, err := o.ch.Get("q", false)
	return d, err
}

// serve speaks only as much AMQP as the client needs.
func (o *oracle) serve(c net.Conn) {
	defer c.Close()
	method := func(channel byte, class, id uint16, arguments ...byte) []byte {
		b := frame(1, append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, class), id), arguments...))
		b[2] = channel
		return b
	}
	start := append([]byte{0, 9, 0, 0, 0, 0}, append(long([]byte("PLAIN")), long([]byte("en_US"))...)...)
	tune := binary.BigEndian.AppendUint32([]byte{0, 9}, uint32(o.limit))
	answers := map[[2]uint16][]byte{
		{10, 11}: method(0, 10, 30, append(tune, 0, 0)...),
		{10, 40}: method(0, 10, 41, 0),
		{10, 50}: method(0, 10, 51),
		{20, 10}: method(1, 20, 11, 0, 0, 0, 0),
		{60, 70}: method(1, 60, 71, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0),
	}
	b := make([]byte, 8)
	if _, err := io.ReadFull(c, b); err != nil {
		return
	}
	_, _ = c.Write(method(0, 10, 10, start...))
	for {
		if _, err := io.ReadFull(c, b[:frameHead]); err != nil {
			return
		}
		payload := make([]byte, binary.BigEndian.Uint32(b[3:])+1)
		if _, err := io.ReadFull(c, payload); err != nil {
			return
		}
		if b[0] != 1 {
			continue
		}
		which := [2]uint16{binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])}
		answer := answers[which]
		if which == [2]uint16{60, 70} {
			answer = append(bytes.Clone(answer), o.next...)
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}
