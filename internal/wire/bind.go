// Package wire implements the format of a task on the wire: declared types, bodies, and headers, from Go values and
// back.
package wire

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/text"
)

var (
	timeType        = reflect.TypeFor[time.Time]()
	bytesType       = reflect.TypeFor[[]byte]()
	jsonType        = reflect.TypeFor[any]()
	jsonMarshaler   = reflect.TypeFor[json.Marshaler]()
	textMarshaler   = reflect.TypeFor[encoding.TextMarshaler]()
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

var scalarTypes = [...]reflect.Type{
	kindBool: reflect.TypeFor[bool](), kindString: reflect.TypeFor[string](),
	kindInt: reflect.TypeFor[int](), kindInt8: reflect.TypeFor[int8](), kindInt16: reflect.TypeFor[int16](),
	kindInt32: reflect.TypeFor[int32](), kindInt64: reflect.TypeFor[int64](),
	kindUint: reflect.TypeFor[uint](), kindUint8: reflect.TypeFor[uint8](), kindUint16: reflect.TypeFor[uint16](),
	kindUint32: reflect.TypeFor[uint32](), kindUint64: reflect.TypeFor[uint64](),
	kindFloat32: reflect.TypeFor[float32](), kindFloat64: reflect.TypeFor[float64](),
	kindTime: timeType, kindDuration: reflect.TypeFor[time.Duration](),
}

// scalarOf returns which of the fourteen basic types a kind is. It returns kindNone for other kinds.
func scalarOf(kind reflect.Kind) scalar {
	switch {
	case kind == reflect.Bool:
		return kindBool
	case kind == reflect.String:
		return kindString
	case kind >= reflect.Int && kind <= reflect.Int64:
		return kindInt + scalar(kind-reflect.Int)
	case kind >= reflect.Uint && kind <= reflect.Uint64:
		return kindUint + scalar(kind-reflect.Uint)
	case kind == reflect.Float32:
		return kindFloat32
	case kind == reflect.Float64:
		return kindFloat64
	}
	return kindNone
}

// goType returns the Go type that a declared type names.
func (t argType) goType() reflect.Type {
	switch t.Shape {
	case shapeScalar:
		return scalarTypes[t.elem]
	case shapeSlice:
		return reflect.SliceOf(scalarTypes[t.elem])
	case shapeMap:
		return reflect.MapOf(scalarTypes[kindString], scalarTypes[t.elem])
	case shapeBytes:
		return bytesType
	}
	return jsonType
}

// Carries reports whether JSON can carry a type: to the task (decode false) or into a parameter (decode true). Structs
// are trusted, because their fields may have tags.
func Carries(t reflect.Type, decode bool, seen map[reflect.Type]bool) bool {
	if decode && OwnDecoding(t) ||
		!decode && (t.Implements(jsonMarshaler) || t.Implements(textMarshaler)) {
		return true
	}
	switch t.Kind() {
	case reflect.Chan, reflect.Func, reflect.Complex64, reflect.Complex128, reflect.Uintptr, reflect.UnsafePointer:
		return false
	case reflect.Interface:
		return !decode || t.NumMethod() == 0
	case reflect.Slice, reflect.Array, reflect.Map, reflect.Pointer:
		if seen[t] { // type T []T
			return true
		}
		if seen == nil {
			seen = make(map[reflect.Type]bool)
		}
		seen[t] = true
		for e, steps := t, 0; e.Kind() == reflect.Pointer; e, steps = e.Elem(), steps+1 {
			if steps == 100 { // type P *P: encoding/json would allocate pointers for ever
				return false
			}
		}
		if t.Kind() == reflect.Map && !carriesKey(t.Key(), decode) {
			return false
		}
		return Carries(t.Elem(), decode, seen)
	case reflect.Struct:
		return t.NumField() == 0 || hasJSONFields(t)
	}
	return true
}

// hasJSONFields reports whether encoding/json sees any field. Without one, an errors.New or a named time.Time would
// travel as {}.
func hasJSONFields(t reflect.Type) bool {
	for f := range t.Fields() {
		if f.IsExported() || f.Anonymous {
			return true
		}
	}
	return false
}

func carriesKey(t reflect.Type, decode bool) bool {
	switch k := scalarOf(t.Kind()); {
	case k == kindString || k.integer():
		return true
	case decode:
		return reflect.PointerTo(t).Implements(textUnmarshaler)
	}
	return t.Implements(textMarshaler)
}

// Fill sets a parameter from one argument. It fills Want and Got of its error.
func Fill(dst reflect.Value, typ argType, arg Value) *Mismatch {
	switch {
	case typ.Shape == shapeUnknown:
		return &Mismatch{Want: "a known type", Got: fmt.Sprintf("type %q", text.Excerpt(arg.Type))}
	case len(arg.Value) == 0:
		return &Mismatch{Want: arg.Type, Got: "no value"}
	case typ.Shape == shapeJSON:
		return fillJSON(dst, arg.Value)
	case typ.Shape == shapeScalar:
		return fillScalar(dst, typ.elem, arg.Value)
	case dst.Kind() == reflect.Interface && dst.NumMethod() == 0:
		v := reflect.New(typ.goType()).Elem()
		bad := Fill(v, typ, arg)
		if bad == nil {
			dst.Set(v)
		}
		return bad
	case dst.Kind() == reflect.Pointer && dst.Type().Elem().Kind() != reflect.Pointer:
		v := reflect.New(dst.Type().Elem())
		bad := Fill(v.Elem(), typ, arg)
		if bad == nil {
			dst.Set(v)
		}
		return bad
	}
	return fillMany(dst, typ, arg)
}

// fillMany sets a parameter that is a slice or a map.
func fillMany(dst reflect.Value, typ argType, arg Value) *Mismatch {
	kind := dst.Kind()
	switch {
	case typ.Shape == shapeBytes && kind == reflect.Slice && dst.Type().Elem().Kind() == reflect.Uint8:
		return fillBytes(dst, arg)
	case typ.Shape == shapeSlice && kind == reflect.Slice && holds(dst.Type().Elem(), typ.elem):
		return fillSlice(dst, typ.elem, arg)
	case typ.Shape == shapeMap && kind == reflect.Map &&
		dst.Type().Key().Kind() == reflect.String && holds(dst.Type().Elem(), typ.elem):
		return fillMap(dst, typ.elem, arg)
	}
	return &Mismatch{Want: dst.Type().String(), Got: arg.Type + " " + text.Excerpt(arg.Value)}
}

func (v Value) isNull() bool { return string(v.Value) == "null" }

// notDeclared reports that a value does not have its declared type.
func (v Value) notDeclared() *Mismatch {
	return &Mismatch{Want: v.Type, Got: text.Excerpt(v.Value)}
}

func fillScalar(dst reflect.Value, k scalar, raw []byte) *Mismatch {
	if k == kindString && dst.Kind() == reflect.String { // the most common value
		if s, ok := unquote(raw); ok {
			dst.SetString(s)
			return nil
		}
	}
	v, ok := parseScalar(k, raw)
	if !ok {
		return &Mismatch{Want: scalarNames[k], Got: text.Excerpt(raw)}
	}
	if !holds(dst.Type(), k) || !setScalar(dst, &v) {
		return &Mismatch{Want: dst.Type().String(), Got: scalarNames[k] + " " + text.Excerpt(raw)}
	}
	return nil
}

func fillBytes(dst reflect.Value, arg Value) *Mismatch {
	b, ok := parseBytes(arg.Value)
	if !ok {
		return arg.notDeclared()
	}
	dst.SetBytes(b)
	return nil
}

func fillSlice(dst reflect.Value, k scalar, arg Value) *Mismatch {
	if arg.isNull() {
		return nil
	}
	if arg.Value[0] != '[' {
		return arg.notDeclared()
	}
	n := 0
	for range elements(arg.Value) {
		n++
	}
	s := reflect.MakeSlice(dst.Type(), n, n)
	n = 0
	for value := range elements(arg.Value) {
		if bad := fillScalar(s.Index(n), k, value); bad != nil {
			bad.Got += " at [" + strconv.Itoa(n) + "]"
			return bad
		}
		n++
	}
	dst.Set(s)
	return nil
}

func fillMap(dst reflect.Value, k scalar, arg Value) *Mismatch {
	if arg.isNull() {
		return nil
	}
	if arg.Value[0] != '{' {
		return arg.notDeclared()
	}
	t := dst.Type()
	m := reflect.MakeMap(t)
	for quoted, value := range members(arg.Value) {
		name, _ := unquote(quoted)
		key := reflect.New(t.Key()).Elem()
		key.SetString(name)
		if m.MapIndex(key).IsValid() { // it is unclear which of the two is meant
			return &Mismatch{Want: t.String(), Got: "the duplicate key " + text.Excerpt(quoted)}
		}
		elem := reflect.New(t.Elem()).Elem()
		if bad := fillScalar(elem, k, value); bad != nil {
			bad.Got += " at [" + text.Excerpt(quoted) + "]"
			return bad
		}
		m.SetMapIndex(key, elem)
	}
	dst.Set(m)
	return nil
}

// holds reports whether a Go type may take values of a declared type at all. setScalar then checks each value. holds is
// called before a slice is made, so that the length of an array on the wire does not determine how much memory is
// allocated.
func holds(t reflect.Type, k scalar) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch kind := scalarOf(t.Kind()); {
	case kind.integer():
		return k.integer() || k == kindDuration && kind == kindInt64
	case kind.float():
		return k.float()
	case kind != kindNone:
		return k == kind
	case t.Kind() == reflect.Interface:
		return t.NumMethod() == 0
	}
	return k == kindTime && t == timeType
}

// setScalar sets a value that holds has allowed. It returns false if the value does not fit without loss.
func setScalar(dst reflect.Value, v *scalarValue) bool {
	switch kind := scalarOf(dst.Kind()); {
	case kind == kindBool:
		dst.SetBool(v.b)
	case kind == kindString:
		dst.SetString(v.s)
	case kind.signed():
		i, ok := v.int64()
		if !ok || dst.OverflowInt(i) {
			return false
		}
		dst.SetInt(i)
	case kind.unsigned():
		u, ok := v.uint64()
		if !ok || dst.OverflowUint(u) {
			return false
		}
		dst.SetUint(u)
	case kind == kindFloat32:
		if float64(float32(v.f)) != v.f {
			return false
		}
		dst.SetFloat(v.f)
	case kind == kindFloat64:
		dst.SetFloat(v.f)
	case dst.Kind() == reflect.Struct:
		dst.Set(reflect.ValueOf(v.t))
	case dst.Kind() == reflect.Interface:
		boxed := reflect.New(scalarTypes[v.kind]).Elem()
		if !setScalar(boxed, v) { // an int beyond 32 bits on a 32-bit machine
			return false
		}
		dst.Set(boxed)
	case dst.Kind() == reflect.Pointer:
		pointed := reflect.New(dst.Type().Elem())
		if !setScalar(pointed.Elem(), v) {
			return false
		}
		dst.Set(pointed)
	default:
		return false
	}
	return true
}

// fillJSON decodes into the parameter's own type. Numbers in interfaces become json.Number.
func fillJSON(dst reflect.Value, raw []byte) *Mismatch {
	nullScalar := string(raw) == "null" && scalarOf(dst.Kind()) != kindNone
	if nullScalar && !reflect.PointerTo(dst.Type()).Implements(jsonUnmarshaler) {
		return &Mismatch{Want: dst.Type().String(), Got: "json null"} // encoding/json would leave a zero in its place
	}
	if err := unmarshal(dst.Addr().Interface(), raw); err != nil {
		return &Mismatch{Want: dst.Type().String(), Got: text.Reason(err)}
	}
	if lost := cannotHold(dst.Type(), raw); lost != "" {
		return &Mismatch{Want: dst.Type().String(), Got: lost}
	}
	return nil
}

// unmarshal decodes one JSON value. It contains the panics of the value's own methods.
func unmarshal(into any, raw []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("json whose decoding panicked: %v", p)
		}
	}()
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.InputOffset() != int64(len(raw)) {
		return errors.New("json: data after the value")
	}
	return nil
}
