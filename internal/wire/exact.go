package wire

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/seed-416683c9/dispatcher/internal/text"
)

// This file finds changes that encoding/json makes without an error. When writing, it changes text that is not UTF-8
// and times with seconds in their offset. When reading, it changes arrays of another length and integers in floats. The
// search follows the JSON and the Go value side by side, so it ends where the JSON does, even if the value refers to
// itself.

// flaw is a kind of change that json.Marshal makes to a value.
type flaw struct {
	mark func(raw []byte) bool // raw has a trace of it; cheap
	// v, written as raw, has it; own: a method of v's type wrote raw.
	is func(v reflect.Value, raw []byte, own bool) bool
}

// maxPointers bounds how many pointers are followed. It stops at a pointer to itself, in a field that JSON does not
// see.
const maxPointers = 100

// replacedText finds bytes that are not UTF-8, which json.Marshal writes as \ufffd. It writes a U+FFFD of the text
// itself unescaped. So the escape stands for such bytes, or comes from a type's own method, which is trusted.
var replacedText = flaw{
	mark: func(raw []byte) bool { return bytes.Contains(raw, []byte(`\ufffd`)) },
	is: func(v reflect.Value, _ []byte, own bool) bool {
		return v.Kind() == reflect.String && !own && !utf8.ValidString(v.String())
	},
}

// shiftedTime finds times with seconds in their offset. RFC 3339 has none, so such a time is written as another
// instant.
var shiftedTime = flaw{
	mark: func(raw []byte) bool {
		const end = `+00:19"` // or with a minus
		for i := len(end) - 1; i < len(raw); i++ {
			if raw[i] == '"' && raw[i-3] == ':' && (raw[i-6] == '+' || raw[i-6] == '-') {
				return true
			}
		}
		return false
	},
	is: func(v reflect.Value, raw []byte, _ bool) bool {
		at, ok := timeIn(v)
		if !ok {
			return false
		}
		if _, offset := at.Zone(); offset%60 == 0 {
			return false
		}
		text, err := at.MarshalJSON()
		return err == nil && bytes.Equal(text, raw)
	},
}

// timeIn returns the time that v is or embeds. If v embeds it, v may have its MarshalJSON.
func timeIn(v reflect.Value) (at time.Time, ok bool) {
	if v.Kind() == reflect.Struct && v.Type() != timeType {
		f, embedded := v.Type().FieldByName("Time")
		if !embedded || !f.Anonymous || f.Type != timeType {
			return at, false
		}
		field, err := v.FieldByIndexErr(f.Index)
		if err != nil {
			return at, false
		}
		v = field
	}
	if v.Type() != timeType || !v.CanInterface() {
		return at, false
	}
	at, ok = v.Interface().(time.Time)
	return at, ok
}

// isFlawed reports whether v, which json.Marshal wrote as raw, has the flaw anywhere.
func isFlawed(f flaw, v any, raw []byte) bool { return f.in(reflect.ValueOf(v), raw) }

func (f flaw) in(v reflect.Value, raw []byte) bool {
	if !f.mark(raw) {
		return false
	}
	own := ownEncoding(v)
	for i := 0; i < maxPointers && (v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface); i++ {
		v = v.Elem()
		own = own || ownEncoding(v)
	}
	switch {
	case !v.IsValid():
		return false
	case f.is(v, raw, own):
		return true
	case own:
		return false
	}
	switch v.Kind() {
	case reflect.Slice, reflect.Array:
		return f.inElement(v, raw)
	case reflect.Map:
		return f.inMember(v, raw)
	case reflect.Struct:
		return f.inField(v, raw)
	}
	return false
}

// ownEncoding reports whether a method of v's own type writes v. v may be the zero Value, which is written as null.
func ownEncoding(v reflect.Value) bool {
	if !v.IsValid() {
		return true
	}
	t := v.Type()
	if v.CanAddr() && t.Kind() != reflect.Pointer {
		t = reflect.PointerTo(t) // has the methods of both
	}
	return t.Implements(jsonMarshaler) || t.Implements(textMarshaler)
}

func (f flaw) inElement(v reflect.Value, raw []byte) bool {
	i := 0
	for value := range elements(raw) {
		if i < v.Len() && f.in(v.Index(i), value) {
			return true
		}
		i++
	}
	return false
}

func (f flaw) inMember(v reflect.Value, raw []byte) bool {
	named := v.Type().Key().Kind() == reflect.String // written unchanged, whatever methods it has
	for key, value := range members(raw) {
		if f.mark(key) {
			for it := v.MapRange(); it.Next(); {
				if f.is(it.Key(), key, !named && ownEncoding(it.Key())) {
					return true
				}
			}
		}
		if !f.mark(value) {
			continue
		}
		if named {
			name, _ := unquote(key)
			if e := v.MapIndex(reflect.ValueOf(name).Convert(v.Type().Key())); e.IsValid() && f.in(e, value) {
				return true
			}
			continue
		}
		for it := v.MapRange(); it.Next(); { // all are written, so one match is enough
			if f.in(it.Value(), value) {
				return true
			}
		}
	}
	return false
}

func (f flaw) inField(v reflect.Value, raw []byte) bool {
	for key, value := range members(raw) {
		if !f.mark(value) {
			continue
		}
		name, _ := unquote(key)
		for _, field := range reflect.VisibleFields(v.Type()) {
			if field.IsExported() && (jsonName(field) == name || field.Name == name) {
				if in, err := v.FieldByIndexErr(field.Index); err == nil && f.in(in, value) {
					return true
				}
			}
		}
	}
	return false
}

// jsonName returns the name in a field's tag, or "" if there is none.
func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// cannotHold describes the part of raw that a parameter of type t cannot hold although json.Unmarshal would fill it. It
// returns "" if there is none. It finds arrays with more or fewer elements, and integers that a float of that size
// cannot represent.
func cannotHold(t reflect.Type, raw []byte) string {
	has, ok := hasArrays.Load(t)
	if !ok {
		has, _ = hasArrays.LoadOrStore(t, losesElements(t, nil))
	}
	if !has.(bool) && !hasLongNumber(raw) {
		return ""
	}
	return tooMuch(t, raw)
}

var hasArrays sync.Map // from the type of a parameter to the result of losesElements

// losesElements reports whether there is an array anywhere in t.
func losesElements(t reflect.Type, seen map[reflect.Type]bool) bool {
	switch t.Kind() {
	case reflect.Array:
		return true
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Struct:
	default:
		return false
	}
	if seen[t] || OwnDecoding(t) {
		return false
	}
	if seen == nil {
		seen = make(map[reflect.Type]bool)
	}
	seen[t] = true
	if t.Kind() != reflect.Struct {
		return losesElements(t.Elem(), seen)
	}
	for f := range t.Fields() {
		if losesElements(f.Type, seen) {
			return true
		}
	}
	return false
}

// hasLongNumber reports whether raw has enough digits in a row for an integer that a float cannot hold. 2^24 has eight.
func hasLongNumber(raw []byte) bool {
	run := 0
	for _, c := range raw {
		if c < '0' || c > '9' {
			run = 0
		} else if run++; run == 8 {
			return true
		}
	}
	return false
}

// OwnDecoding reports whether a type has a method that reads JSON or text into it.
func OwnDecoding(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(jsonUnmarshaler) || p.Implements(textUnmarshaler)
}

func tooMuch(t reflect.Type, raw []byte) string {
	for t.Kind() == reflect.Pointer && !OwnDecoding(t) {
		t = t.Elem()
	}
	if string(raw) == "null" || OwnDecoding(t) {
		return ""
	}
	switch k := t.Kind(); {
	case k == reflect.Float32 || k == reflect.Float64:
		if v, ok := parseScalar(scalarOf(k), raw); ok && !holdsInteger(v.f, scalarOf(k), raw) {
			return text.Excerpt(raw) + " in a " + t.String()
		}
	case (k == reflect.Array || k == reflect.Slice) && raw[0] == '[':
		n := 0
		for value := range elements(raw) {
			if lost := tooMuch(t.Elem(), value); lost != "" {
				return lost
			}
			n++
		}
		if k == reflect.Array && n != t.Len() {
			return fmt.Sprintf("%d elements in a %s", n, t)
		}
	case k == reflect.Map && raw[0] == '{':
		for _, value := range members(raw) {
			if lost := tooMuch(t.Elem(), value); lost != "" {
				return lost
			}
		}
	case k == reflect.Struct && raw[0] == '{':
		for key, value := range members(raw) {
			name, _ := unquote(key)
			if f, ok := fieldFor(t, name); ok {
				if lost := tooMuch(f.Type, value); lost != "" {
					return lost
				}
			}
		}
	}
	return ""
}

// fieldFor returns the field that json.Unmarshal fills from a member. It is the one with that name, or else one with
// that name in another case.
func fieldFor(t reflect.Type, name string) (found reflect.StructField, ok bool) {
	for _, f := range reflect.VisibleFields(t) {
		has := jsonName(f)
		if has == "" {
			has = f.Name
		}
		switch {
		case !f.IsExported() || has == "-":
		case has == name:
			return f, true
		case !ok && strings.EqualFold(has, name):
			found, ok = f, true
		}
	}
	return found, ok
}
