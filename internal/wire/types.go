package wire

import (
	"bytes"
	"encoding/base64"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/text"
)

// This file defines the meaning of declared types and reads their values from JSON text, without loss or not at all.
// The same code checks a value before it is published and reads it at the worker.

// shape is the structure of a declared type.
type shape uint8

const (
	shapeUnknown shape = iota
	shapeScalar
	shapeSlice // of scalars
	shapeMap   // from string to scalars
	shapeBytes
	shapeJSON
)

// scalar is a type of single values.
type scalar uint8

const (
	kindNone scalar = iota
	kindBool
	kindString
	kindInt
	kindInt8
	kindInt16
	kindInt32
	kindInt64
	kindUint
	kindUint8
	kindUint16
	kindUint32
	kindUint64
	kindFloat32
	kindFloat64
	kindTime
	kindDuration
)

var scalarNames = [...]string{"", "bool", "string", "int", "int8", "int16", "int32", "int64",
	"uint", "uint8", "uint16", "uint32", "uint64", "float32", "float64", "time.Time", "time.Duration"}

func (k scalar) signed() bool   { return k >= kindInt && k <= kindInt64 || k == kindDuration }
func (k scalar) unsigned() bool { return k >= kindUint && k <= kindUint64 }
func (k scalar) integer() bool  { return k >= kindInt && k <= kindUint64 }
func (k scalar) float() bool    { return k == kindFloat32 || k == kindFloat64 }

// bits returns the size of a number. int and uint have 64 bits on the wire, whatever they have on this machine.
func (k scalar) bits() int {
	switch k {
	case kindInt8, kindUint8:
		return 8
	case kindInt16, kindUint16:
		return 16
	case kindInt32, kindUint32, kindFloat32:
		return 32
	}
	return 64
}

// argType is a declared type. Its zero value is an unknown type.
type argType struct {
	Shape shape
	elem  scalar // of a scalar, slice or map
}

func (t argType) is(k scalar) bool { return t.Shape == shapeScalar && t.elem == k }

// typeName returns the name of a type, without copying the names of basic types.
func typeName(b []byte) string {
	if name := scalarNames[parseScalarName(string(b))]; name != "" {
		return name
	}
	return string(b)
}

// ParseType parses a type name as it stands in a task.
func ParseType(name string) argType {
	if k := parseScalarName(name); k != kindNone {
		return argType{shapeScalar, k}
	}
	switch name {
	case "json":
		return argType{Shape: shapeJSON}
	case "[]byte":
		return argType{Shape: shapeBytes}
	case "time.Time":
		return argType{shapeScalar, kindTime}
	case "time.Duration":
		return argType{shapeScalar, kindDuration}
	}
	if elem, ok := strings.CutPrefix(name, "[]"); ok {
		if k := parseScalarName(elem); k != kindNone {
			return argType{shapeSlice, k}
		}
	}
	if elem, ok := strings.CutPrefix(name, "map[string]"); ok {
		if k := parseScalarName(elem); k != kindNone {
			return argType{shapeMap, k}
		}
	}
	return argType{}
}

// parseScalarName parses the fourteen names that may also be elements.
func parseScalarName(name string) scalar {
	switch name {
	case "bool":
		return kindBool
	case "string":
		return kindString
	case "int":
		return kindInt
	case "int8":
		return kindInt8
	case "int16":
		return kindInt16
	case "int32":
		return kindInt32
	case "int64":
		return kindInt64
	case "uint":
		return kindUint
	case "uint8":
		return kindUint8
	case "uint16":
		return kindUint16
	case "uint32":
		return kindUint32
	case "uint64":
		return kindUint64
	case "float32":
		return kindFloat32
	case "float64":
		return kindFloat64
	}
	return kindNone
}

// scalarValue is a value of a declared type. It keeps an integer as sign and magnitude, so that the whole ranges of
// int64 and uint64 fit.
type scalarValue struct {
	kind scalar
	b    bool
	neg  bool
	mag  uint64
	f    float64
	s    string
	t    time.Time
}

func (v *scalarValue) int64() (int64, bool) {
	if v.neg {
		return -int64(v.mag), v.mag <= 1<<63 // -int64(1<<63) is MinInt64
	}
	return int64(v.mag), v.mag <= math.MaxInt64
}

func (v *scalarValue) uint64() (uint64, bool) { return v.mag, !v.neg || v.mag == 0 }

// parseScalar reads valid JSON as a value of one type. It returns false if the JSON is no such value.
func parseScalar(k scalar, raw []byte) (v scalarValue, ok bool) {
	if len(raw) == 0 {
		return v, false
	}
	v.kind = k
	switch {
	case k == kindBool:
		v.b = raw[0] == 't'
		return v, string(raw) == "true" || string(raw) == "false"
	case k == kindString:
		v.s, ok = unquote(raw)
	case k.signed():
		if v.neg, v.mag, ok = parseInteger(raw); ok {
			limit := uint64(1) << (k.bits() - 1)
			ok = v.mag < limit || v.neg && v.mag == limit
		}
	case k.unsigned():
		if v.neg, v.mag, ok = parseInteger(raw); ok {
			ok = (!v.neg || v.mag == 0) && v.mag <= math.MaxUint64>>(64-k.bits())
		}
	case k.float():
		if c := raw[0]; c != '-' && (c < '0' || c > '9') {
			return v, false // "Inf" is a number to strconv
		}
		f, err := strconv.ParseFloat(string(raw), k.bits())
		v.f, ok = f, err == nil
	case k == kindTime:
		if s, isText := unquote(raw); isText {
			v.t, ok = parseTime(s)
		}
	}
	return v, ok
}

// parseTime parses a time. It is stricter than time.Parse, which accepts one-digit hours and a comma, and drops the
// digits below a nanosecond.
func parseTime(s string) (time.Time, bool) {
	const seconds = len("2006-01-02T15:04:05")
	if len(s) <= seconds || s[seconds-6] != ':' {
		return time.Time{}, false
	}
	switch zone := strings.TrimLeft(s[seconds+1:], "0123456789"); s[seconds] {
	case '.':
		if len(s)-len(zone)-seconds > len(".999999999") {
			return time.Time{}, false
		}
	case 'Z', '+', '-':
	default:
		return time.Time{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	return t, err == nil
}

// parseInteger reads a JSON number as an integer, exactly: 5.0 and 1e3 are integers, 1.5 is none. It calculates on the
// decimal digits, in time linear in the text, however large the exponent is. It returns false for other numbers and for
// integers beyond 64 bits.
func parseInteger(raw []byte) (neg bool, mag uint64, ok bool) {
	digits, exp := raw, int64(0)
	if len(digits) > 0 && digits[0] == '-' {
		neg, digits = true, digits[1:]
	}
	if len(digits) <= 18 { // the usual number: only digits, and no overflow
		plain := len(digits) > 0
		for _, c := range digits {
			if c < '0' || c > '9' {
				plain = false
				break
			}
			mag = mag*10 + uint64(c-'0')
		}
		if plain {
			return neg, mag, true
		}
		mag = 0
	}
	if i := bytes.IndexAny(digits, "eE"); i >= 0 {
		if exp, ok = parseExponent(digits[i+1:]); !ok {
			return false, 0, false
		}
		digits = digits[:i]
	}
	whole, frac, _ := bytes.Cut(digits, []byte("."))
	if len(whole) == 0 {
		return false, 0, false
	}
	// value = (whole ++ frac) · 10^exp, with the last digit not zero.
	if frac = bytes.TrimRight(frac, "0"); len(frac) == 0 {
		trimmed := bytes.TrimRight(whole, "0")
		exp += int64(len(whole) - len(trimmed))
		whole = trimmed
	}
	exp -= int64(len(frac))
	for _, part := range [2][]byte{whole, frac} {
		for _, c := range part {
			if c < '0' || c > '9' {
				return false, 0, false
			}
			d := uint64(c - '0')
			if mag > (math.MaxUint64-d)/10 {
				return false, 0, false
			}
			mag = mag*10 + d
		}
	}
	if mag == 0 {
		return neg, 0, true
	}
	for ; exp > 0; exp-- { // at most 20 rounds, since mag is not 0
		if mag > math.MaxUint64/10 {
			return false, 0, false
		}
		mag *= 10
	}
	return neg, mag, exp == 0
}

// parseExponent reads the digits after the e of a number. It caps an exponent that is larger than the digits of any
// text.
func parseExponent(raw []byte) (exp int64, ok bool) {
	const most = 1 << 40
	neg := len(raw) > 0 && raw[0] == '-'
	if neg || len(raw) > 0 && raw[0] == '+' {
		raw = raw[1:]
	}
	for _, c := range raw {
		if c < '0' || c > '9' {
			return 0, false
		}
		exp = min(exp*10+int64(c-'0'), most)
	}
	if neg {
		exp = -exp
	}
	return exp, len(raw) > 0
}

// parseBytes reads standard, padded base64. null becomes nil.
func parseBytes(raw []byte) ([]byte, bool) {
	if string(raw) == "null" {
		return nil, true
	}
	s, ok := unquote(raw)
	if !ok {
		return nil, false
	}
	b, err := base64.StdEncoding.DecodeString(s)
	return b, err == nil
}

// leaf is the Go type that a published value is made of, where its JSON alone could mislead.
type leaf uint8

const (
	leafOther leaf = iota
	leafInteger
	leafFloat
	leafBytes
)

// checkValue reports which part of raw is not of the declared type, or nil if all of it is. Only Got of the error is
// filled.
func checkValue(typ argType, raw []byte, from leaf) *Mismatch {
	if from == leafBytes && typ.Shape != shapeBytes { // its base64 would pass for a string
		return &Mismatch{Got: "a []byte; its type is []byte"}
	}
	isNull := string(raw) == "null"
	switch {
	case typ.Shape == shapeJSON || isNull && typ.Shape != shapeScalar:
		return nil
	case typ.Shape == shapeScalar && checkScalar(typ.elem, raw, from):
		return nil
	case typ.Shape == shapeBytes:
		if _, ok := parseBytes(raw); ok {
			return nil
		}
	case typ.Shape == shapeSlice && raw[0] == '[':
		i := 0
		for value := range elements(raw) {
			if !checkScalar(typ.elem, value, from) {
				return &Mismatch{Got: atIndex(value, i)}
			}
			i++
		}
		return nil
	case typ.Shape == shapeMap && raw[0] == '{':
		seen := make(map[string]struct{})
		for quoted, value := range members(raw) {
			if !checkScalar(typ.elem, value, from) {
				return &Mismatch{Got: atKey(value, quoted)}
			}
			key, _ := unquote(quoted)
			if _, twice := seen[key]; twice { // only a json.RawMessage or a MarshalJSON can do that
				return &Mismatch{Got: "the duplicate key " + text.Excerpt(quoted)}
			}
			seen[key] = struct{}{}
		}
		return nil
	}
	return &Mismatch{Got: text.Excerpt(raw)}
}

// checkScalar reports whether raw is a value of type k. It also refuses numbers whose text is not the given value: an
// integer as a float that cannot hold it, and a float beyond 2^53 as an integer, because JSON has only its first 17
// digits.
func checkScalar(k scalar, raw []byte, from leaf) bool {
	v, ok := parseScalar(k, raw)
	switch {
	case !ok:
		return false
	case from == leafInteger && k.float():
		return strconv.FormatFloat(v.f, 'f', 0, 64) == string(raw)
	case from == leafOther && k.float():
		return holdsInteger(v.f, k, raw)
	case from == leafFloat && (k.signed() || k.unsigned()):
		return v.mag <= 1<<53
	}
	return true
}

// holdsInteger reports whether f, read from raw, equals the integer in raw. It returns true if raw is no integer. The
// text of a float beyond 2^53 looks like an integer too, with zeros after its first 17 digits, and is taken for that
// float.
func holdsInteger(f float64, k scalar, raw []byte) bool {
	if bytes.ContainsAny(raw, ".eE") || string(raw) == "-0" {
		return true
	}
	return strconv.FormatFloat(f, 'f', 0, 64) == string(raw) || strconv.FormatFloat(f, 'f', -1, k.bits()) == string(raw)
}

func atIndex(value []byte, i int) string {
	return text.Excerpt(value) + " at [" + strconv.Itoa(i) + "]"
}
func atKey(value, key []byte) string { return text.Excerpt(value) + " at [" + text.Excerpt(key) + "]" }

// Mismatch explains why a value does not fit its declared type, or a parameter.
type Mismatch struct{ Want, Got string }
