package rabbitmq

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"

	"github.com/seed-416683c9/dispatcher/broker"
)

// maxFieldDepth and maxFieldEntries are the limits of the client for a header frame (amqp091-go v1.16.0, read.go).
// RabbitMQ has neither limit.
const (
	maxFieldDepth   = 32   // tables and arrays inside the table of headers
	maxFieldEntries = 8192 // of one table or array
)

// The properties of a message, by the bits of their flags. A set flag means that the property is present. The
// properties follow in the order from the highest bit. All but these four are short strings.
const (
	firstFlag       = 15
	headersBit      = 13
	deliveryModeBit = 12
	priorityBit     = 11
	timestampBit    = 6
	lastFlag        = 2

	flagHeaders = 1 << headersBit
	flagsAt     = 12 // after class, weight and the size of the body
	fixedPart   = flagsAt + 2

	// maxProperties is more than all properties after the headers can have.
	maxProperties = 9*(1+maxName) + 16
)

// headerFault is the reason why the client cannot read a header frame; zero = it can.
type headerFault struct {
	kind faultKind
	typ  byte // of the field, for unknownType
}

type faultKind byte

const (
	readable faultKind = iota
	tooDeep
	tooManyEntries
	unknownType
	cutShort // a length leads out of the frame; RabbitMQ does not accept such a message
)

func (f headerFault) String() string {
	switch f.kind {
	case tooDeep:
		return fmt.Sprintf("the headers are nested deeper than %d", maxFieldDepth)
	case tooManyEntries:
		return fmt.Sprintf("a table or array in the headers has more than %d entries", maxFieldEntries)
	case unknownType:
		return fmt.Sprintf("the headers have a value of the unknown type %q", f.typ)
	case cutShort:
		return "the properties are cut short"
	}
	return ""
}

func tooLargeHeaders(size, limit int64) string {
	return fmt.Sprintf("the headers and properties need a frame of %d bytes, the maximum is %d", size, limit)
}

// inspect walks through the payload of a header frame without copying it. See walkField for its one change to the
// payload.
func inspect(b []byte) headerFault {
	if len(b) < fixedPart {
		return headerFault{kind: cutShort}
	}
	flags := binary.BigEndian.Uint16(b[flagsAt:])
	b = b[fixedPart:]
	for bit := firstFlag; bit >= lastFlag; bit-- {
		if flags>>bit&1 == 0 {
			continue
		}
		n, ok := propertySize(bit, b)
		if !ok {
			return headerFault{kind: cutShort}
		}
		if bit == headersBit {
			if fault := walkTable(b[4:n], 0); fault.kind != readable {
				return fault
			}
		}
		b = b[n:]
	}
	return headerFault{}
}

// propertySize returns the size of the property at the beginning of b. If b is shorter, ok is false.
func propertySize(bit int, b []byte) (n int, ok bool) {
	switch bit {
	case headersBit:
		return prefixed(b)
	case deliveryModeBit, priorityBit:
		n = 1
	case timestampBit:
		n = 8
	default:
		if len(b) == 0 {
			return 0, false
		}
		n = 1 + int(b[0])
	}
	return n, n <= len(b)
}

// prefixed returns the size of a value that begins with its length, in four bytes.
func prefixed(b []byte) (n int, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	size := binary.BigEndian.Uint32(b)
	if uint64(size) > uint64(len(b)-4) {
		return 0, false
	}
	return 4 + int(size), true
}

func walkTable(b []byte, depth int) (fault headerFault) {
	for entries := 0; len(b) > 0; entries++ {
		if entries == maxFieldEntries {
			return headerFault{kind: tooManyEntries}
		}
		name := 1 + int(b[0])
		if name >= len(b) {
			return headerFault{kind: cutShort}
		}
		if b, fault = walkField(b[name:], depth); fault.kind != readable {
			return fault
		}
	}
	return headerFault{}
}

func walkArray(b []byte, depth int) (fault headerFault) {
	for entries := 0; len(b) > 0; entries++ {
		if entries == maxFieldEntries {
			return headerFault{kind: tooManyEntries}
		}
		if b, fault = walkField(b, depth); fault.kind != readable {
			return fault
		}
	}
	return headerFault{}
}

// walkField returns the part of b after its first value.
//
// L is the 64-bit integer of the AMQP 0-9-1 specification, which some clients send. RabbitMQ reads it as l and writes l
// itself (rabbit_binary_parser), but passes on the bytes that it received, and the client does not know L. So walkField
// changes it to l.
func walkField(b []byte, depth int) (rest []byte, fault headerFault) {
	typ := &b[0]
	n := 0
	switch b = b[1:]; *typ {
	case 'V':
	case 't', 'b', 'B':
		n = 1
	case 's', 'u':
		n = 2
	case 'I', 'i', 'f':
		n = 4
	case 'D':
		n = 5
	case 'L':
		*typ = 'l'
		n = 8
	case 'l', 'd', 'T':
		n = 8
	case 'S', 'x', 'A', 'F':
		var ok bool
		if n, ok = prefixed(b); !ok {
			return nil, headerFault{kind: cutShort}
		}
		if *typ == 'S' || *typ == 'x' {
			break
		}
		if depth++; depth > maxFieldDepth {
			return nil, headerFault{kind: tooDeep}
		}
		if *typ == 'A' {
			fault = walkArray(b[4:n], depth)
		} else {
			fault = walkTable(b[4:n], depth)
		}
		if fault.kind != readable {
			return nil, fault
		}
	default:
		return nil, headerFault{kind: unknownType, typ: *typ}
	}
	if n > len(b) {
		return nil, headerFault{kind: cutShort}
	}
	return b[n:], headerFault{}
}

// newMarker returns the name of the header that holds the reason for a replacement. Each connection has its own, so no
// message can fake one.
func newMarker() string { return "x-dispatcher-unreadable-" + rand.Text() }

// split divides the payload of a header frame into the part before the headers, the entries of their table, and the
// properties after it. Bytes that do not parse are in none of them.
func split(payload []byte) (front, table, after []byte) {
	front, rest, ok := splitFront(payload)
	if !ok || binary.BigEndian.Uint16(front[flagsAt:])&flagHeaders == 0 {
		return front, nil, nil
	}
	n, ok := prefixed(rest)
	if !ok {
		return front, nil, nil
	}
	return front, rest[4:n], rest[n:]
}

// splitFront returns the part before the headers, and the rest. If the payload is cut short, ok is false.
func splitFront(payload []byte) (front, rest []byte, ok bool) {
	if len(payload) < fixedPart {
		return payload, nil, false
	}
	n, flags := fixedPart, binary.BigEndian.Uint16(payload[flagsAt:])
	for bit := firstFlag; bit > headersBit; bit-- {
		if flags>>bit&1 == 0 {
			continue
		}
		size, ok := propertySize(bit, payload[n:])
		if !ok {
			return payload[:n], nil, false
		}
		n += size
	}
	return payload[:n], payload[n:], true
}

// rawLimit returns how many bytes of an unreadable table are kept: half a frame, so that a dead letter has room for
// them, and less if the properties need the other half.
func (f *frames) rawLimit(front, after []byte) int64 {
	const others = 512 // the marker with its text, and the rest of the frame
	limit := f.limit.Load()
	return max(0, min(limit/2, limit-int64(len(front)+min(len(after), maxProperties)+others)))
}

// replacement returns a header frame of the same message that the client can read. It has the properties that could be
// read, and a table with the reason and the first bytes of the headers.
func (f *frames) replacement(head, front, table, after []byte, why string) []byte {
	frame := make([]byte, 0, len(front)+len(after)+len(table)+512)
	frame = append(frame, head...)
	flags := uint16(flagHeaders)
	var properties []byte
	if len(front) < fixedPart {
		frame = append(frame, make([]byte, fixedPart)...)
	} else {
		frame = append(frame, front[:fixedPart]...)
		properties = front[fixedPart:]
	}
	had := binary.BigEndian.Uint16(frame[frameHead+flagsAt:])
	keep := func(from, to int, b []byte) bool {
		for bit := from; bit >= to; bit-- {
			if had>>bit&1 == 0 {
				continue
			}
			n, ok := propertySize(bit, b)
			if !ok {
				return false
			}
			flags |= 1 << bit
			frame, b = append(frame, b[:n]...), b[n:]
		}
		return true
	}
	all := keep(firstFlag, headersBit+1, properties)
	at := len(frame)
	frame = append(frame, 0, 0, 0, 0)
	frame = appendField(frame, f.marker, 'S', []byte(why))
	frame = appendField(frame, broker.RawHeaders, 'x', table[:min(int64(len(table)), f.rawLimit(front, after))])
	binary.BigEndian.PutUint32(frame[at:], uint32(len(frame)-at-4))
	if all {
		keep(headersBit-1, lastFlag, after)
	}
	binary.BigEndian.PutUint16(frame[frameHead+flagsAt:], flags)
	binary.BigEndian.PutUint32(frame[3:], uint32(len(frame)-frameHead))
	return append(frame, frameEnd)
}

// appendField appends a value with its length to a table.
func appendField(table []byte, name string, typ byte, value []byte) []byte {
	table = append(append(table, byte(len(name))), name...)
	table = binary.BigEndian.AppendUint32(append(table, typ), uint32(len(value)))
	return append(table, value...)
}

// noteUnreadable sets m.Unreadable and counts the message, if its headers were replaced.
func (s *session) noteUnreadable(queue string, m *broker.Message) {
	why, ok := m.Headers[s.consume.marker].(string)
	if !ok {
		return
	}
	delete(m.Headers, s.consume.marker)
	m.Unreadable = why
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unreadable == nil {
		s.unreadable = make(map[string]int)
	}
	s.unreadable[queue]++
}

func (s *session) unreadables() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.unreadable)
}
