package rabbitmq

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// These functions build pieces of frames as a broker writes them.

func frame(typ byte, payload []byte) []byte {
	b := []byte{typ, 0, 1, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(b[3:], uint32(len(payload)))
	return append(append(b, payload...), frameEnd)
}

func short(s string) []byte { return append([]byte{byte(len(s))}, s...) }

func long(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func entry(name string, value ...byte) []byte { return append(short(name), value...) }

// allProperties returns the payload of a header frame with every property and with entries in the headers.
func allProperties(bodySize uint64, entries []byte) []byte {
	b := []byte{0, 60, 0, 0}
	b = binary.BigEndian.AppendUint64(b, bodySize)
	b = append(b, 0xFF, 0xFC)
	b = append(b, short("type")...)
	b = append(b, short("encoding")...)
	b = append(b, long(entries)...)
	b = append(b, 2, 5)
	b = append(b, short("correlation")...)
	b = append(b, short("reply")...)
	b = append(b, short("60000")...)
	b = append(b, short("id")...)
	b = binary.BigEndian.AppendUint64(b, 1_700_000_000)
	for _, s := range []string{"kind", "user", "app", "cluster"} {
		b = append(b, short(s)...)
	}
	return b
}

// nested returns a table with an entry of that many tables or arrays inside each other.
func nested(typ byte, levels int) []byte {
	value := []byte{'V'}
	for i := range levels {
		if typ == 'F' || i == levels-1 {
			value = append([]byte{'F'}, long(entry("n", value...))...)
		} else {
			value = append([]byte{'A'}, long(value)...)
		}
	}
	return entry("deep", value...)
}

func manyEntries(n int) []byte {
	var table []byte
	for i := range n {
		table = append(table, entry(fmt.Sprint(i), 'V')...)
	}
	return table
}

func listField(n int) []byte {
	return entry("list", append([]byte{'A'}, long(bytes.Repeat([]byte{'V'}, n))...)...)
}

// everyType returns a table with a value of each type that RabbitMQ knows.
func everyType() []byte {
	var table []byte
	for _, value := range []string{
		"t\x01", "b\xff", "B\xff", "s\x00\x01", "u\x00\x01", "I\x00\x00\x00\x01", "i\x00\x00\x00\x01", "l\x00\x00\x00\x00\x00\x00\x00\x01",
		"d\x00\x00\x00\x00\x00\x00\x00\x01", "f\x00\x00\x00\x01", "D\x01\x00\x00\x00\x01", "T\x00\x00\x00\x00\x00\x00\x00\x01", "V",
		"S\x00\x00\x00\x01x", "x\x00\x00\x00\x01x", "A\x00\x00\x00\x02t\x01", "F\x00\x00\x00\x03\x01nV", "A\x00\x00\x00\x00", "F\x00\x00\x00\x00",
	} {
		table = append(table, entry("type "+value[:1]+fmt.Sprint(len(table)), []byte(value)...)...)
	}
	return table
}

// through reads a stream through a filter. Both sides transfer a random number of bytes at a time.
func through(t testing.TB, stream []byte, limit int, random *rand.Rand) (out []byte, marker string, err error) {
	t.Helper()
	client, server := net.Pipe()
	go func() {
		for rest := stream; len(rest) > 0; {
			n := min(len(rest), 1+random.IntN(3000))
			if _, err := server.Write(rest[:n]); err != nil {
				break
			}
			rest = rest[n:]
		}
		_ = server.Close()
	}()
	defer client.Close()
	f := newFrames(client)
	f.agree(limit)
	buf := make([]byte, 70_000)
	sizes := rand.New(rand.NewPCG(uint64(len(stream)), 1))
	for {
		n, err := f.Read(buf[:1+sizes.IntN(len(buf))])
		if out = append(out, buf[:n]...); err != nil {
			return out, f.marker, err
		}
	}
}

func TestFramesPassUnchangedWhatTheClientCanRead(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	headers := [][]byte{
		allProperties(0, nil), allProperties(1, everyType()), allProperties(1, nested('F', maxFieldDepth)),
		allProperties(1, nested('A', maxFieldDepth)), allProperties(1, manyEntries(maxFieldEntries)), allProperties(1, listField(maxFieldEntries)),
		{0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		allProperties(1, entry("long", append([]byte{'S'}, long(make([]byte, 130_000))...)...)),
	}
	for range 50 {
		var stream []byte
		for range 30 {
			switch random.IntN(4) {
			case 0:
				stream = append(stream, frame(1, make([]byte, random.IntN(100)))...)
			case 1:
				stream = append(stream, frame(3, bytes.Repeat([]byte{headerFrame}, random.IntN(131_064)))...)
			case 2:
				stream = append(stream, frame(8, nil)...)
			default:
				stream = append(stream, frame(headerFrame, headers[random.IntN(len(headers))])...)
			}
		}
		stream = stream[:len(stream)-random.IntN(10)] // the connection may end anywhere
		out, _, err := through(t, stream, 131_072, random)
		if !bytes.Equal(out, stream) || !errors.Is(err, io.EOF) {
			t.Fatalf("seed %d: %d of %d bytes came, or they were changed: %v", seed, len(out), len(stream), err)
		}
	}
}

func TestFramesReplaceWhatTheClientCannotRead(t *testing.T) {
	t.Parallel()
	big := entry("big", append([]byte{'S'}, long(make([]byte, 131_000))...)...)
	huge := entry("huge", append([]byte{'S'}, long(make([]byte, 8<<20))...)...)
	for name, test := range map[string]struct {
		table   []byte
		payload []byte // instead of table
		why     string
		partial bool // properties after the headers may be lost
	}{
		"33 tables":              {table: nested('F', maxFieldDepth+1), why: "deeper than 32"},
		"33 arrays":              {table: nested('A', maxFieldDepth+1), why: "deeper than 32"},
		"8,193 entries":          {table: manyEntries(maxFieldEntries + 1), why: "more than 8192"},
		"8,193 elements":         {table: listField(maxFieldEntries + 1), why: "more than 8192"},
		"unknown type":           {table: entry("x", 'Z', 1, 2), why: "unknown type 'Z'"},
		"larger than a frame":    {table: big, why: "need a frame of 131108 bytes, the maximum is 131072"},
		"much larger":            {table: huge, why: "the maximum is 131072"},
		"length beyond its end":  {table: entry("x", 'S', 0, 0, 0, 9, 1), why: "cut short"},
		"table beyond the frame": {payload: append(allProperties(0, nil)[:14+5+9], 0, 0, 1, 0, 1), why: "cut short", partial: true},
		"nothing at all":         {payload: []byte{}, why: "cut short", partial: true},
	} {
		payload := test.payload
		if payload == nil {
			payload = allProperties(0, test.table)
		}
		before, after := frame(3, make([]byte, 5000)), frame(8, nil)
		stream := append(append(bytes.Clone(before), frame(headerFrame, payload)...), after...)
		out, marker, err := through(t, stream, 131_072, rand.New(rand.NewPCG(1, 2)))
		if !errors.Is(err, io.EOF) || !bytes.HasPrefix(out, before) || !bytes.HasSuffix(out, after) {
			t.Fatalf("%s: %d bytes, neighbours changed: %v", name, len(out), err)
		}
		got := out[len(before) : len(out)-len(after)]
		client := newOracle(t, 131_072)
		d, err := client.read(got)
		if err != nil {
			t.Fatalf("%s: the client cannot read the replacement: %v", name, err)
		}
		if why, _ := d.Headers[marker].(string); !strings.Contains(why, test.why) {
			t.Errorf("%s: reason %q, want %q", name, why, test.why)
		}
		if test.partial {
			continue
		}
		if raw, _ := d.Headers[broker.RawHeaders].([]byte); len(raw) < min(len(test.table), 65_000) || !bytes.HasPrefix(test.table, raw) {
			t.Errorf("%s: %d raw bytes of %d", name, len(raw), len(test.table))
		}
		d.Headers, d.Acknowledger = nil, nil
		want, _ := client.read(frame(headerFrame, allProperties(0, nil)))
		want.Headers, want.Acknowledger = nil, nil
		if fmt.Sprint(d) != fmt.Sprint(want) {
			t.Errorf("%s: properties\n%v\nwant\n%v", name, d, want)
		}
	}
}

// php-amqplib and others write 64-bit integers as type L. RabbitMQ accepts and delivers them, but this client does not
// know the type.
func TestFramesMakeTheSpecificationsLongReadable(t *testing.T) {
	t.Parallel()
	array := append([]byte{'A'}, long([]byte("L\x00\x00\x00\x00\x00\x00\x00\x08"))...)
	table := append(entry("n", []byte("L\xff\xff\xff\xff\xff\xff\xff\xfe")...), entry("list", array...)...)
	out, _, _ := through(t, frame(headerFrame, allProperties(0, table)), 131_072, rand.New(rand.NewPCG(1, 2)))
	d, err := newOracle(t, 131_072).read(out)
	if err != nil || d.Headers["n"] != int64(-2) || fmt.Sprint(d.Headers["list"]) != "[8]" {
		t.Errorf("%v, %v", d.Headers, err)
	}
}

// A header frame needs no more memory than the client's own frames, whatever size it announces.
func TestFramesBoundTheirMemory(t *testing.T) {
	for name, size := range map[string]uint32{"the largest message of RabbitMQ": maxHeaderPayload, "what no broker has": 1<<32 - 1} {
		payload := allProperties(0, make([]byte, 1000))
		binary.BigEndian.PutUint32(payload[fixedPart+5+9:], size-100)
		stream := frame(headerFrame, append(payload, make([]byte, 200_000)...))
		binary.BigEndian.PutUint32(stream[3:], size)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f := newFrames(&script{Reader: bytes.NewReader(stream)})
		n, err := io.Copy(io.Discard, struct{ io.Reader }{f})
		runtime.ReadMemStats(&after)
		if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 1<<20 || err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("%s: %d bytes passed, %d were allocated: %v", name, n, allocated, err)
		}
	}
	if _, err := newOracle(t, 131_072).read([]byte{headerFrame, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF}); err == nil {
		t.Error("the client accepts any size")
	}
}

// script is a connection that yields one stream and ends.
type script struct {
	net.Conn
	io.Reader
}

func (s *script) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func TestFramesCostNoAllocation(t *testing.T) {
	f := newFrames(&endless{stream: benchStream()})
	buf := make([]byte, 4096)
	if n := testing.AllocsPerRun(1000, func() { _, _ = f.Read(buf) }); n > 0 {
		t.Errorf("%v allocations per read", n)
	}
}

// benchStream returns deliveries with a few headers and 256 bytes, as a worker receives them.
func benchStream() []byte {
	table := append(entry("x-dispatcher-attempt", []byte("l\x00\x00\x00\x00\x00\x00\x00\x01")...),
		entry("x-dispatcher-routing-key", append([]byte{'S'}, long([]byte("some.routing.key"))...)...)...)
	var stream []byte
	for range 64 {
		stream = append(stream, frame(1, make([]byte, 60))...)
		stream = append(stream, frame(headerFrame, allProperties(256, table))...)
		stream = append(stream, frame(3, make([]byte, 256))...)
	}
	return stream
}

// endless is a connection that repeats one stream for ever.
type endless struct {
	net.Conn
	stream []byte
	at     int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.stream[e.at:])
	e.at = (e.at + n) % len(e.stream)
	return n, nil
}

// BenchmarkFrames measures the cost of the filter per delivery. Compare it with the same reads without the filter.
func BenchmarkFrames(b *testing.B) {
	stream := benchStream()
	for name, r := range map[string]io.Reader{"filtered": newFrames(&endless{stream: stream}), "bare": &endless{stream: stream}} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, 4096)
			b.SetBytes(int64(len(stream) / 64))
			b.ReportAllocs()
			read := 0
			for b.Loop() { // one iteration is one delivery
				for read < len(stream)/64 {
					n, err := r.Read(buf)
					if err != nil {
						b.Fatal(err)
					}
					read += n
				}
				read -= len(stream) / 64
			}
		})
	}
}
