package dispatcher

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strconv"

	"github.com/seed-416683c9/dispatcher/internal/wire"
)

// This file turns a function into its call plan, and arguments into values. newCallPlan examines a function once. A
// task then costs one pass over its arguments and one reflect.Call.

var (
	contextType = reflect.TypeFor[context.Context]()
	errorType   = reflect.TypeFor[error]()
)

// callPlan describes one function to a worker. It is read-only after newCallPlan, so any number of goroutines may use
// it at once.
type callPlan struct {
	task         string
	fn           reflect.Value
	takesContext bool
	takesUUID    bool
	uuidType     reflect.Type   // of kind string
	lead         int            // parameters before the arguments: context and uuid
	params       []reflect.Type // one for each argument
	frame        reflect.Type   // a struct of params, which are allocated together
	fields       []int          // of each of params in frame; -1 = allocated by itself
	rest         reflect.Type   // type of the variadic arguments; nil = none
	returnsError bool
}

// boundCall holds the converted arguments of one call. It serves only one call, and is not copied but by clone.
type boundCall struct {
	in   []reflect.Value
	room [4]reflect.Value // for in, since most functions have no more parameters: it costs no allocation
}

// clone returns a copy, since plan.call changes the values before the arguments.
func (b *boundCall) clone() *boundCall { return &boundCall{in: slices.Clone(b.in)} }

// forget drops the arguments. When the function has ended, the call may still wait for hours until it is settled.
func (b *boundCall) forget() { *b = boundCall{} }

// newCallPlan checks a function and plans its calls. The error names the task, the parameter (counted from 1) and its
// type.
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
			return nil, fmt.Errorf(
				"task %q: TaskUUIDAsFirstArg requires parameter %d to be a string, but there is none",
				task, p.lead+1)
		}
		if first.Kind() != reflect.String {
			return nil, fmt.Errorf(
				"task %q: TaskUUIDAsFirstArg requires parameter %d to be a string, got %s",
				task, p.lead+1, first)
		}
		p.takesUUID, p.uuidType = true, first
		p.lead++
	}
	p.planFrame()
	for i := p.lead; i < t.NumIn(); i++ {
		if !wire.Carries(t.In(i), true, nil) {
			return nil, fmt.Errorf("task %q: parameter %d (%s): no argument can have this type", task, i+1, t.In(i))
		}
	}
	if n := t.NumOut(); n > 0 && t.Out(n-1).Implements(errorType) {
		last := t.Out(n - 1)
		if last.Kind() != reflect.Interface && last.Kind() != reflect.Pointer {
			return nil, fmt.Errorf(
				"task %q: result %d (%s) is an error that cannot be nil: every call would fail; return error",
				task, n, last)
		}
		p.returnsError = true
	}
	return p, nil
}

// planFrame decides which parameters are allocated together. A type with a method of its own may rely on a receiver that
// is allocated by itself: runtime.SetFinalizer ends the process for a pointer into something else.
func (p *callPlan) planFrame() {
	var fields []reflect.StructField
	p.fields = make([]int, len(p.params))
	for i, t := range p.params {
		if wire.OwnDecoding(t) {
			p.fields[i] = -1
			continue
		}
		p.fields[i] = len(fields)
		fields = append(fields, reflect.StructField{Name: "P" + strconv.Itoa(i), Type: t})
	}
	p.frame = reflect.StructOf(fields)
}

// bind converts the arguments of a task for one call. The error is an *ArgumentError, with position -1 if the number of
// arguments is wrong. bind runs user code only if a parameter's type has its own UnmarshalJSON or UnmarshalText, and
// contains its panics.
func (p *callPlan) bind(b *boundCall, args []wire.Value) error {
	if n := len(args); n < len(p.params) || n > len(p.params) && p.rest == nil {
		return &ArgumentError{p.task, -1, p.arity(), strconv.Itoa(n)}
	}
	in := b.room[:0]
	if n := p.lead + len(args); n <= cap(in) {
		in = in[:n]
	} else {
		in = make([]reflect.Value, n)
	}
	var frame reflect.Value
	if p.frame != nil && p.frame.NumField() > 0 {
		frame = reflect.New(p.frame).Elem()
	}
	for i, arg := range args {
		var v reflect.Value
		switch {
		case i >= len(p.params):
			v = reflect.New(p.rest).Elem()
		case p.fields == nil || p.fields[i] < 0:
			v = reflect.New(p.params[i]).Elem()
		default:
			v = frame.Field(p.fields[i])
		}
		if bad := wire.Fill(v, wire.ParseType(arg.Type), arg); bad != nil {
			b.forget()
			return &ArgumentError{p.task, i, bad.Want, bad.Got}
		}
		in[p.lead+i] = v
	}
	b.in = in
	return nil
}

// store assigns args to the variables that pointers point to. If it fails, it changes none of them.
func store(task string, args []wire.Value, pointers []any) error {
	p := callPlan{task: task}
	for i, pointer := range pointers {
		v := reflect.ValueOf(pointer)
		if v.Kind() != reflect.Pointer || v.IsNil() {
			return &ArgumentError{task, i, "a pointer that is not nil", fmt.Sprintf("%T", pointer)}
		}
		p.params = append(p.params, v.Type().Elem())
	}
	var bound boundCall
	if err := p.bind(&bound, args); err != nil {
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

// call calls the function on this goroutine and returns its error result, if it has one. ctx and uuid are used only if
// the function takes them. A panic of the function passes through; the worker contains it.
func (p *callPlan) call(ctx context.Context, uuid string, b *boundCall) error {
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
	if last.IsNil() { // a nil *MyError would be a non-nil error
		return nil
	}
	return last.Interface().(error)
}
