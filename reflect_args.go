package dispatcher

import (
	"bytes"
	"context"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/text"
)

// From a function to its call plan, and from arguments to values. What is known about a function is found out once, in
// newCallPlan; a task costs one pass over its arguments and one reflect.Call.

var (
	contextType = reflect.TypeFor[context.Context]()
	errorType   = reflect.TypeFor[error]()
	timeType    = reflect.TypeFor[time.Time]()
	bytesType   = reflect.TypeFor[[]byte]()
	jsonType    = reflect.TypeFor[any]()

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

// scalarOf returns which of the fourteen basic types a kind is, kindNone for the others.
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

// goType is the Go type that a declared type names.
func (t argType) goType() reflect.Type {
	switch t.shape {
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

// callPlan is what a worker knows about one function. It is not written after newCallPlan: any number of goroutines may use
// it at once.
type callPlan struct {
	task         string
	fn           reflect.Value
	takesContext bool
	takesUUID    bool
	uuidType     reflect.Type   // a string kind
	lead         int            // parameters before the arguments: context and uuid
	params       []reflect.Type // one for each argument
	rest         reflect.Type   // of the further arguments of a variadic function; nil = there are none
	returnsError bool
}

// boundCall holds the converted arguments of one call. It is used up by it.
type boundCall struct{ in []reflect.Value }

// newCallPlan checks a function and plans its calls. The error names the task, the parameter (counted from 1) and its type.
func newCallPlan(task string, fn any, uuidFirst bool) (*callPlan, error) {
	v := reflect.ValueOf(fn)
	if !v.IsValid() || v.Kind() == reflect.Func && v.IsNil() {
		return nil, fmt.Errorf("task %q: function is nil", task)
	}
	if v.Kind() != reflect.Func {
		return nil, fmt.Errorf("task %q: want a function, got %s", task, v.Type())
	}
	t := v.Type()
	p := &callPlan{task: task, fn: v}
	for i := range t.NumIn() {
		p.params = append(p.params, t.In(i))
	}
	if t.IsVariadic() {
		last := len(p.params) - 1
		p.rest, p.params = p.params[last].Elem(), p.params[:last]
	}
	if len(p.params) > 0 && p.params[0] == contextType {
		p.takesContext, p.params = true, p.params[1:]
		p.lead++
	}
	if uuidFirst {
		first := p.rest // a variadic function may take the uuid as its first string
		if len(p.params) > 0 {
			first, p.params = p.params[0], p.params[1:]
		}
		if first == nil {
			return nil, fmt.Errorf("task %q: TaskUUIDAsFirstArg wants parameter %d to be a string, but there is none", task, p.lead+1)
		}
		if first.Kind() != reflect.String {
			return nil, fmt.Errorf("task %q: TaskUUIDAsFirstArg wants parameter %d to be a string, got %s", task, p.lead+1, first)
		}
		p.takesUUID, p.uuidType = true, first
		p.lead++
	}
	for i := p.lead; i < t.NumIn(); i++ {
		if !carries(t.In(i), true, nil) {
			return nil, fmt.Errorf("task %q: parameter %d (%s): no argument can fill it", task, i+1, t.In(i))
		}
	}
	if n := t.NumOut(); n > 0 && t.Out(n-1).Implements(errorType) {
		last := t.Out(n - 1)
		if last.Kind() != reflect.Interface && last.Kind() != reflect.Pointer {
			return nil, fmt.Errorf("task %q: result %d (%s) is an error that cannot be nil: every call would fail; return error", task, n, last)
		}
		p.returnsError = true
	}
	return p, nil
}

// carries reports whether JSON can carry a type: to the task (decode false) or into a parameter (decode true). Structs are
// trusted, their fields may have tags.
func carries(t reflect.Type, decode bool, seen map[reflect.Type]bool) bool {
	if decode && (reflect.PointerTo(t).Implements(jsonUnmarshaler) || reflect.PointerTo(t).Implements(textUnmarshaler)) ||
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
		return carries(t.Elem(), decode, seen)
	case reflect.Struct:
		return t.NumField() == 0 || hasJSONFields(t)
	}
	return true
}

// hasJSONFields reports whether encoding/json sees any field: an errors.New, or a named time.Time, would travel as {}.
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

// bind converts the arguments of a task for one call. The error is an *ArgumentError; a wrong number of arguments has the
// position -1. It runs user code only where a parameter's type has its own UnmarshalJSON or UnmarshalText, and contains its panics.
func (p *callPlan) bind(args []wireArgument) (boundCall, error) {
	if n := len(args); n < len(p.params) || n > len(p.params) && p.rest == nil {
		return boundCall{}, &ArgumentError{p.task, -1, p.arity(), strconv.Itoa(n)}
	}
	in := make([]reflect.Value, p.lead+len(args))
	for i, arg := range args {
		t := p.rest
		if i < len(p.params) {
			t = p.params[i]
		}
		v := reflect.New(t).Elem()
		if bad := fill(v, parseType(arg.Type), arg); bad != nil {
			bad.Task, bad.Position = p.task, i
			return boundCall{}, bad
		}
		in[p.lead+i] = v
	}
	return boundCall{in}, nil
}

// store binds args to the variables that pointers point to. If it fails, it has changed none.
func store(task string, args []wireArgument, pointers []any) error {
	p := callPlan{task: task}
	for i, pointer := range pointers {
		v := reflect.ValueOf(pointer)
		if v.Kind() != reflect.Pointer || v.IsNil() {
			return &ArgumentError{task, i, "a pointer that is not nil", fmt.Sprintf("%T", pointer)}
		}
		p.params = append(p.params, v.Type().Elem())
	}
	bound, err := p.bind(args)
	if err != nil {
		return err
	}
	for i, pointer := range pointers {
		reflect.ValueOf(pointer).Elem().Set(bound.in[i])
	}
	return nil
}

func (p *callPlan) arity() string {
	s := strconv.Itoa(len(p.params)) + " argument"
	if len(p.params) != 1 {
		s += "s"
	}
	if p.rest != nil {
		s = "at least " + s
	}
	return s
}

// call calls the function on this goroutine and returns its error result, if it has one. ctx and uuid are used only if the
// function takes them. A panic of the function passes through: the worker contains it.
func (p *callPlan) call(ctx context.Context, uuid string, b boundCall) error {
	if p.takesContext {
		if ctx == nil {
			ctx = context.Background()
		}
		b.in[0] = reflect.ValueOf(ctx)
	}
	if p.takesUUID {
		v := reflect.New(p.uuidType).Elem()
		v.SetString(uuid)
		b.in[p.lead-1] = v
	}
	out := p.fn.Call(b.in)
	if !p.returnsError {
		return nil
	}
	last := out[len(out)-1]
	if last.IsNil() { // a nil *MyError, which would be an error that is not nil
		return nil
	}
	return last.Interface().(error)
}

// fill sets a parameter from one argument. Want and Got of its error are filled.
func fill(dst reflect.Value, typ argType, arg wireArgument) *ArgumentError {
	switch {
	case typ.shape == shapeUnknown:
		return &ArgumentError{Want: "a known type", Got: fmt.Sprintf("type %q", text.Excerpt(arg.Type))}
	case len(arg.Value) == 0:
		return &ArgumentError{Want: arg.Type, Got: "no value"}
	case typ.shape == shapeJSON:
		return fillJSON(dst, arg.Value)
	case typ.shape == shapeScalar:
		return fillScalar(dst, typ.elem, arg.Value)
	case dst.Kind() == reflect.Interface && dst.NumMethod() == 0:
		v := reflect.New(typ.goType()).Elem()
		bad := fill(v, typ, arg)
		if bad == nil {
			dst.Set(v)
		}
		return bad
	case dst.Kind() == reflect.Pointer && dst.Type().Elem().Kind() != reflect.Pointer:
		v := reflect.New(dst.Type().Elem())
		bad := fill(v.Elem(), typ, arg)
		if bad == nil {
			dst.Set(v)
		}
		return bad
	}
	isNull, notDeclared := string(arg.Value) == "null", &ArgumentError{Want: arg.Type, Got: text.Excerpt(arg.Value)}
	switch {
	case typ.shape == shapeBytes && dst.Kind() == reflect.Slice && dst.Type().Elem().Kind() == reflect.Uint8:
		b, ok := parseBytes(arg.Value)
		if !ok {
			return notDeclared
		}
		dst.SetBytes(b)
		return nil
	case typ.shape == shapeSlice && dst.Kind() == reflect.Slice && holds(dst.Type().Elem(), typ.elem):
		if isNull {
			return nil
		}
		if arg.Value[0] != '[' {
			return notDeclared
		}
		return fillSlice(dst, typ.elem, arg.Value)
	case typ.shape == shapeMap && dst.Kind() == reflect.Map && dst.Type().Key().Kind() == reflect.String && holds(dst.Type().Elem(), typ.elem):
		if isNull {
			return nil
		}
		if arg.Value[0] != '{' {
			return notDeclared
		}
		return fillMap(dst, typ.elem, arg.Value)
	}
	return &ArgumentError{Want: dst.Type().String(), Got: arg.Type + " " + text.Excerpt(arg.Value)}
}

func fillScalar(dst reflect.Value, k scalar, raw []byte) *ArgumentError {
	v, ok := parseScalar(k, raw)
	if !ok {
		return &ArgumentError{Want: scalarNames[k], Got: text.Excerpt(raw)}
	}
	if !holds(dst.Type(), k) || !setScalar(dst, &v) {
		return &ArgumentError{Want: dst.Type().String(), Got: scalarNames[k] + " " + text.Excerpt(raw)}
	}
	return nil
}

func fillSlice(dst reflect.Value, k scalar, raw []byte) *ArgumentError {
	n := 0
	for range elements(raw) {
		n++
	}
	s := reflect.MakeSlice(dst.Type(), n, n)
	n = 0
	for value := range elements(raw) {
		if bad := fillScalar(s.Index(n), k, value); bad != nil {
			bad.Got += " at [" + strconv.Itoa(n) + "]"
			return bad
		}
		n++
	}
	dst.Set(s)
	return nil
}

func fillMap(dst reflect.Value, k scalar, raw []byte) *ArgumentError {
	t := dst.Type()
	m := reflect.MakeMap(t)
	for quoted, value := range members(raw) {
		name, _ := unquote(quoted)
		key := reflect.New(t.Key()).Elem()
		key.SetString(name)
		if m.MapIndex(key).IsValid() { // which of the two is meant?
			return &ArgumentError{Want: t.String(), Got: "the key " + text.Excerpt(quoted) + " twice"}
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

// holds reports whether values of a declared type may go into a Go type at all; whether one fits, setScalar knows. Asked
// before a slice is made, so that the length of an array on the wire does not choose the size of our memory.
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

// setScalar sets what holds has allowed; false = the value does not fit without loss.
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
		if !setScalar(boxed, v) { // an int beyond 32 bits on a machine of 32
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
func fillJSON(dst reflect.Value, raw []byte) *ArgumentError {
	if string(raw) == "null" && scalarOf(dst.Kind()) != kindNone && !reflect.PointerTo(dst.Type()).Implements(jsonUnmarshaler) {
		return &ArgumentError{Want: dst.Type().String(), Got: "json null"} // encoding/json would leave a zero in its place
	}
	if err := unmarshal(dst.Addr().Interface(), raw); err != nil {
		return &ArgumentError{Want: dst.Type().String(), Got: text.Reason(err)}
	}
	if lost := cannotHold(dst.Type(), raw); lost != "" {
		return &ArgumentError{Want: dst.Type().String(), Got: lost}
	}
	return nil
}

// unmarshal contains the panics of the value's own methods.
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
