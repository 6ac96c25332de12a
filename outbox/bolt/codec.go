package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// An entry is stored as its nonzero fields, each with its name, in the same form as the headers inside it. JSON would
// lose the difference between int64 and float64, and gob has no nil.
//
// A value is one byte for its type, followed by:
const (
	typeNil    = 'n'
	typeTrue   = 't'
	typeFalse  = 'f'
	typeInt    = 'i' // a varint
	typeFloat  = 'd' // eight bytes, big endian
	typeString = 's' // the length as a uvarint, then the bytes
	typeBytes  = 'b' // the same
	typeTime   = 'T' // the same, encoded by time.Time.MarshalBinary: nanoseconds and the offset of the zone
	typeList   = 'a' // the number of elements as a uvarint, then the elements
	typeMap    = 'm' // the same; an element is a key without a type byte, then a value
)

// entryField describes how a field of an entry is stored.
type entryField struct {
	name string
	get  func(*dispatcher.OutboxEntry) (value any, set bool)
	set  func(e *dispatcher.OutboxEntry, value any) bool // false if the value has another type
}

// entryFields are all fields but ID and RoutingKey, which are in the key. Names in files stay for ever.
var entryFields = []entryField{
	stringField("exchange", func(e *dispatcher.OutboxEntry) *string { return &e.Exchange }),
	stringField("uuid", func(e *dispatcher.OutboxEntry) *string { return &e.UUID }),
	stringField("name", func(e *dispatcher.OutboxEntry) *string { return &e.Name }),
	stringField("content-type", func(e *dispatcher.OutboxEntry) *string { return &e.ContentType }),
	field("body", func(e *dispatcher.OutboxEntry) *[]byte { return &e.Body }, func(b []byte) bool { return b != nil }),
	field("headers",
		func(e *dispatcher.OutboxEntry) *map[string]any { return &e.Headers },
		func(h map[string]any) bool { return h != nil }),
	timeField("not-before", func(e *dispatcher.OutboxEntry) *time.Time { return &e.NotBefore }),
	timeField("accepted-at", func(e *dispatcher.OutboxEntry) *time.Time { return &e.AcceptedAt }),
	stringField("refused", func(e *dispatcher.OutboxEntry) *string { return &e.Refused }),
	timeField("refused-at", func(e *dispatcher.OutboxEntry) *time.Time { return &e.RefusedAt }),
}

func field[T any](name string, of func(*dispatcher.OutboxEntry) *T, isSet func(T) bool) entryField {
	return entryField{
		name: name,
		get:  func(e *dispatcher.OutboxEntry) (any, bool) { v := *of(e); return v, isSet(v) },
		set:  func(e *dispatcher.OutboxEntry, value any) (ok bool) { *of(e), ok = value.(T); return ok },
	}
}

func stringField(name string, of func(*dispatcher.OutboxEntry) *string) entryField {
	return field(name, of, func(s string) bool { return s != "" })
}

func timeField(name string, of func(*dispatcher.OutboxEntry) *time.Time) entryField {
	return field(name, of, func(t time.Time) bool { return !t.IsZero() })
}

// encodeEntry encodes an entry without ID and RoutingKey. The error names a header that cannot be stored.
func encodeEntry(e *dispatcher.OutboxEntry) (payload []byte, err error) {
	payload = make([]byte, 0, len(e.Body)+256)
	for _, f := range entryFields {
		if v, set := f.get(e); set {
			payload = appendBytes(payload, f.name)
			if payload, err = appendValue(payload, v); err != nil {
				return nil, fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	return payload, nil
}

// decodeEntry decodes a copy of an entry. The error Is ErrDamaged, unless a newer program has written it.
func decodeEntry(key, value []byte) (e dispatcher.OutboxEntry, err error) {
	routingKey, number, err := splitKey(key)
	if err != nil {
		return e, err
	}
	payload, err := unseal(key, value)
	if err != nil {
		return e, err
	}
	e.RoutingKey, e.ID = routingKey, strconv.FormatUint(number, 10)
	for d := (decoder{payload}); len(d.left) > 0; {
		name := string(d.bytes())
		v := d.value()
		if d.left == nil {
			return e, fmt.Errorf("%w: entry %s of %q cannot be decoded", ErrDamaged, e.ID, e.RoutingKey)
		}
		known := false
		for _, f := range entryFields {
			if f.name == name {
				known = f.set(&e, v)
			}
		}
		if !known { // without it the task might differ
			return e, fmt.Errorf("entry %s of %q has the field %q, which this program does not know",
				e.ID, e.RoutingKey, name)
		}
	}
	return e, nil
}

// errType is the error of a header that no task can have.
var errType = errors.New("a value of this type cannot be stored")

func appendValue(b []byte, v any) (_ []byte, err error) {
	switch v := v.(type) {
	case nil:
		return append(b, typeNil), nil
	case bool:
		if v {
			return append(b, typeTrue), nil
		}
		return append(b, typeFalse), nil
	case int64:
		return binary.AppendVarint(append(b, typeInt), v), nil
	case float64:
		return binary.BigEndian.AppendUint64(append(b, typeFloat), math.Float64bits(v)), nil
	case string:
		return appendBytes(append(b, typeString), v), nil
	case []byte:
		return appendBytes(append(b, typeBytes), v), nil
	case time.Time:
		text, err := v.MarshalBinary()
		return appendBytes(append(b, typeTime), text), err
	case []any:
		b = binary.AppendUvarint(append(b, typeList), uint64(len(v)))
		for i, v := range v {
			if b, err = appendValue(b, v); err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
		}
		return b, nil
	case map[string]any:
		b = binary.AppendUvarint(append(b, typeMap), uint64(len(v)))
		for name, v := range v {
			if b, err = appendValue(appendBytes(b, name), v); err != nil {
				return nil, fmt.Errorf("%.40q: %w", name, err)
			}
		}
		return b, nil
	default:
		return nil, fmt.Errorf("%T: %w", v, errType)
	}
}

func appendBytes[T string | []byte](b []byte, v T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// decoder reads values. left is nil after a decoding error.
type decoder struct{ left []byte }

// take returns the next n bytes.
func (d *decoder) take(n uint64) []byte {
	if d.left == nil || n > uint64(len(d.left)) {
		d.left = nil
		return nil
	}
	b := d.left[:n:n]
	d.left = d.left[n:]
	return b
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.left)
	if n <= 0 {
		d.left = nil
		return 0
	}
	d.left = d.left[n:]
	return v
}

func (d *decoder) bytes() []byte { return d.take(d.uvarint()) }

// value returns a copy of the next value, since the bytes of bbolt are valid only inside their transaction.
func (d *decoder) value() any {
	typ := d.take(1)
	if typ == nil {
		return nil
	}
	switch typ[0] {
	case typeNil:
		return nil
	case typeTrue:
		return true
	case typeFalse:
		return false
	case typeInt:
		v, n := binary.Varint(d.left)
		if n <= 0 {
			d.left = nil
			return nil
		}
		d.left = d.left[n:]
		return v
	case typeFloat:
		if b := d.take(8); b != nil {
			return math.Float64frombits(binary.BigEndian.Uint64(b))
		}
	case typeString:
		return string(d.bytes())
	case typeBytes:
		return append(make([]byte, 0), d.bytes()...)
	case typeTime:
		var t time.Time
		if t.UnmarshalBinary(bytes.Clone(d.bytes())) == nil {
			return t
		}
		d.left = nil
	case typeList:
		list := []any{}
		for n := d.uvarint(); n > 0 && d.left != nil; n-- {
			list = append(list, d.value())
		}
		return list
	case typeMap:
		table := map[string]any{}
		for n := d.uvarint(); n > 0 && d.left != nil; n-- {
			name := string(d.bytes())
			table[name] = d.value()
		}
		return table
	default:
		d.left = nil
	}
	return nil
}
