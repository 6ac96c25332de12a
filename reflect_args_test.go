package dispatcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/wire"
)

type (
	status   int8
	label    string
	labels   []label
	order    struct{ ID int64 }
	tree     []tree
	loop     *loop
	celsius  complex128
	callback func()
)

// UnmarshalText lets JSON fill a celsius, although it is a complex number.
func (c *celsius) UnmarshalText(text []byte) error {
	*c = celsius(complex(float64(len(text)), 0))
	return nil
}

// bindOne calls a function with one parameter of type P, and returns the value that the function received.
func bindOne[P any](typ, raw string) (got P, err error) {
	plan, err := newCallPlan("n", func(p P) { got = p }, false)
	if err != nil {
		return got, err
	}
	bound, err := bindTo(plan, []wire.Value{{Type: typ, Value: json.RawMessage(raw)}})
	if err != nil {
		return got, err
	}
	return got, plan.call(context.Background(), "", bound)
}

func TestFunctionsThatNoTaskCanCallAreRefusedAtOnce(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		fn        any
		uuidFirst bool
		want      string // part of the error; "" = none
	}{
		{nil, false, "function is nil"},
		{(func())(nil), false, "function is nil"},
		{callback(nil), false, "function is nil"},
		{5, false, "want a function, got int"},
		{func(chan int) {}, false, "parameter 1 (chan int)"},
		{func(int, func()) {}, false, "parameter 2 (func())"},
		{func(complex64) {}, false, "parameter 1 (complex64)"},
		{func(uintptr) {}, false, "parameter 1 (uintptr)"},
		{func(unsafe.Pointer) {}, false, "parameter 1 (unsafe.Pointer)"},
		{func(error) {}, false, "parameter 1 (error)"},
		{func(int, context.Context) {}, false, "parameter 2 (context.Context)"},
		{func(context.Context, context.Context) {}, false, "parameter 2 (context.Context)"},
		{func(*context.Context) {}, false, "parameter 1 (*context.Context)"},
		{func(...context.Context) {}, false, "parameter 1 ([]context.Context)"},
		{func(context.Context, string, []chan int) {}, true, "parameter 3 ([]chan int)"},
		{func([2]func()) {}, false, "parameter 1 ([2]func())"},
		{func(map[string]*error) {}, false, "parameter 1 (map[string]*error)"},
		{func(map[float64]int) {}, false, "parameter 1 (map[float64]int)"},
		{func(map[any]int) {}, false, "parameter 1 (map[interface {}]int)"},
		{func(...chan int) {}, false, "parameter 1 ([]chan int)"},
		{func([]loop) {}, false, "parameter 1 ([]dispatcher.loop)"},
		{func() {}, true, "parameter 1 to be a string"},
		{func(context.Context) {}, true, "parameter 2 to be a string"},
		{func(int) {}, true, "parameter 1 to be a string, got int"},
		{func(any) {}, true, "parameter 1 to be a string, got interface {}"},
		{func(context.Context, ...int) {}, true, "parameter 2 to be a string, got int"},

		{func() {}, false, ""},
		{func(context.Context) error { return nil }, false, ""},
		{func(label) {}, true, ""},
		{func(...string) {}, true, ""},
		{func(context.Context, ...label) {}, true, ""},
		{func(any, *any, []any, map[string]any, map[int8][2]*order, struct{ C chan int }) {}, false, ""},
		{func(tree, *tree, map[time.Month]tree) {}, false, ""},
		{func(celsius, *celsius, []celsius) {}, false, ""},
		{time.Time.Unix, false, ""},
	} {
		plan, err := newCallPlan("the task", c.fn, c.uuidFirst)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%T: %v", c.fn, err)
		case c.want != "" && (plan != nil || err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), `"the task"`)):
			t.Errorf("%T: got %v, want %q", c.fn, err, c.want)
		}
	}
}

func TestCallPassesContextUUIDAndArguments(t *testing.T) {
	t.Parallel()
	type key struct{}
	ctx := context.WithValue(t.Context(), key{}, "ctx")
	boom := errors.New("boom")
	var got string
	note := func(v ...any) { got = fmt.Sprintln(v...) }
	for _, c := range []struct {
		fn        any
		uuidFirst bool
		args      []TaskArgument
		want      string
		err       error
	}{
		{func() { note() }, false, nil, "", nil},
		{func() error { note(); return boom }, false, nil, "", boom},
		//lint:ignore ST1008 this test checks that an error is ignored unless it is the last result
		{func() (error, int) { note(); return boom, 1 }, false, nil, "", nil},
		{func() (int, *PanicError) { note(); return 1, nil }, false, nil, "", nil},
		{func(ctx context.Context) (int, error) { note(ctx.Value(key{})); return 1, nil }, false, nil, "ctx", nil},
		{func(ctx context.Context, id label, n int) { note(ctx.Value(key{}), id, n) }, true, Args(7), "ctx the-uuid 7", nil},
		{func(id string, s ...string) { note(id, s) }, true, nil, "the-uuid []", nil},
		{func(id string, s ...string) { note(id, s) }, true, Args("a", "b"), "the-uuid [a b]", nil},
		{func(ids ...string) { note(ids) }, true, Args("a"), "[the-uuid a]", nil},
		{func(ctx context.Context, ids ...string) { note(ids) }, true, nil, "[the-uuid]", nil},
		{func(n int, rest ...any) { note(n, rest) }, false, Args(1, "x", int8(2), []int{3}), "1 [x 2 [3]]", nil},
		{func(a any) { note(a) }, false, []TaskArgument{{"json", nil}}, "<nil>", nil},
	} {
		got = "not called"
		plan, err := newCallPlan("n", c.fn, c.uuidFirst)
		if err != nil {
			t.Fatal(err)
		}
		bound, err := bindTo(plan, wireArgs(t, c.args))
		if err != nil {
			t.Fatal(err)
		}
		if err := plan.call(ctx, "the-uuid", bound); err != c.err {
			t.Errorf("%T: %v", c.fn, err)
		}
		if strings.TrimSpace(got) != c.want {
			t.Errorf("%T: got %q, want %q", c.fn, got, c.want)
		}
	}
}

// wireArgs encodes and decodes arguments.
func wireArgs(t interface{ Fatal(...any) }, args []TaskArgument) []wire.Value {
	body, err := encodeTask(&Task{Name: "n", Args: args})
	if err != nil {
		t.Fatal(err)
	}
	task, err := wire.Decode(body)
	if err != nil {
		t.Fatal(err)
	}
	return task.Args
}

func TestPlanIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	plan, err := newCallPlan("n", func(id string, want string, n int) error {
		if want != fmt.Sprint(n) || id != want {
			return fmt.Errorf("id %s, want %s, n %d", id, want, n)
		}
		return nil
	}, true)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				n := g*1000 + i
				bound, err := bindTo(plan, []wire.Value{{Type: "string", Value: fmt.Appendf(nil, `"%d"`, n)}, {Type: "int", Value: fmt.Append(nil, n)}})
				if err == nil {
					err = plan.call(context.Background(), fmt.Sprint(n), bound)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestD2WrongArityOrTypeIsAnErrorBeforeTheCall(t *testing.T) {
	t.Parallel()
	one, two := wire.Value{Type: "int", Value: json.RawMessage("1")}, []wire.Value{{Type: "int", Value: json.RawMessage("1")}, {Type: "int", Value: json.RawMessage("1")}}
	none := func() { t.Error("called") }
	for _, c := range []struct {
		fn   any
		uuid bool
		args []wire.Value
		want ArgumentError
	}{
		{none, false, two, ArgumentError{"n", -1, "0 arguments", "2"}},
		{func(int) { none() }, false, nil, ArgumentError{"n", -1, "1 argument", "0"}},
		{func(int) { none() }, false, two, ArgumentError{"n", -1, "1 argument", "2"}},
		{func(context.Context, string, int) { none() }, true, two, ArgumentError{"n", -1, "1 argument", "2"}},
		{func(int, int, ...int) { none() }, false, []wire.Value{one}, ArgumentError{"n", -1, "at least 2 arguments", "1"}},
		{func(string) { none() }, false, []wire.Value{one}, ArgumentError{"n", 0, "string", "int 1"}},
		{func(int, bool) { none() }, false, two, ArgumentError{"n", 1, "bool", "int 1"}},
		{func(...string) { none() }, false, []wire.Value{{Type: "string", Value: json.RawMessage(`"a"`)}, one}, ArgumentError{"n", 1, "string", "int 1"}},
	} {
		plan, err := newCallPlan("n", c.fn, c.uuid)
		if err != nil {
			t.Fatal(err)
		}
		_, err = bindTo(plan, c.args)
		if bad, ok := errors.AsType[*ArgumentError](err); !ok || *bad != c.want {
			t.Errorf("%T: got %v, want %v", c.fn, err, &c.want)
		}
	}
}

func TestValuesOfAllTypesSurviveTheWire(t *testing.T) {
	t.Parallel()
	survives := func(name string, check func(*rapid.T)) {
		t.Run(name, func(t *testing.T) { t.Parallel(); rapid.Check(t, check) })
	}
	survives("bool", roundTrip(rapid.Bool()))
	survives("string", roundTrip(rapid.String()))
	survives("int", roundTrip(rapid.Int()))
	survives("int8", roundTrip(rapid.Int8()))
	survives("int16", roundTrip(rapid.Int16()))
	survives("int32", roundTrip(rapid.Int32()))
	survives("int64", roundTrip(rapid.Int64()))
	survives("uint", roundTrip(rapid.Uint()))
	survives("uint8", roundTrip(rapid.Uint8()))
	survives("uint16", roundTrip(rapid.Uint16()))
	survives("uint32", roundTrip(rapid.Uint32()))
	survives("uint64", roundTrip(rapid.Uint64()))
	survives("float32", roundTrip(rapid.Float32Range(-math.MaxFloat32, math.MaxFloat32)))
	survives("float64", roundTrip(rapid.Float64Range(-math.MaxFloat64, math.MaxFloat64)))
	survives("duration", roundTrip(rapid.Map(rapid.Int64(), func(n int64) time.Duration { return time.Duration(n) })))
	survives("status", roundTrip(rapid.Map(rapid.Int8(), func(n int8) status { return status(n) })))
	survives("bytes", roundTrip(rapid.SliceOf(rapid.Byte())))
	survives("strings", roundTrip(rapid.SliceOf(rapid.String())))
	survives("labels", roundTrip(rapid.SliceOf(rapid.Map(rapid.String(), func(s string) label { return label(s) }))))
	survives("int64s", roundTrip(rapid.SliceOf(rapid.Int64())))
	survives("uint64 map", roundTrip(rapid.MapOf(rapid.String(), rapid.Uint64())))
	survives("float32 map", roundTrip(rapid.MapOf(rapid.String(), rapid.Float32Range(-1, 1))))
	survives("time", roundTrip(rapid.Custom(func(t *rapid.T) time.Time {
		at := time.Unix(rapid.Int64Range(-62135596800+86400, 253402300799-86400).Draw(t, "s"), rapid.Int64Range(0, 999999999).Draw(t, "ns"))
		return at.In(time.FixedZone("", 60*rapid.IntRange(-23*60, 23*60).Draw(t, "offset")))
	})))
	survives("struct", roundTrip(rapid.Custom(func(t *rapid.T) map[int][]order {
		return rapid.MapOf(rapid.Int(), rapid.SliceOf(rapid.Map(rapid.Int64(), func(n int64) order { return order{n} }))).Draw(t, "m")
	})))
}

// roundTrip sends a value to a parameter of its own type and, unless it travels as json, to one of type any.
func roundTrip[T any](values *rapid.Generator[T]) func(*rapid.T) {
	return func(t *rapid.T) {
		v := values.Draw(t, "v")
		args := Args(v)
		sent := wireArgs(t, args)
		got, err := bindOne[T](sent[0].Type, string(sent[0].Value))
		if err != nil || !equalValues([]any{got}, []any{v}) {
			t.Fatalf("%s %s: got %#v, %v, want %#v", sent[0].Type, sent[0].Value, got, err, v)
		}
		if sent[0].Type == "json" {
			return
		}
		boxed, err := bindOne[any](sent[0].Type, string(sent[0].Value))
		if err != nil || !equalValues([]any{boxed}, []any{args[0].Value}) {
			t.Fatalf("%s %s into any: got %#v, %v, want %#v", sent[0].Type, sent[0].Value, boxed, err, args[0].Value)
		}
	}
}

// benchBody has two arguments and 160 bytes.
var benchBody = []byte(`{"uuid":"8d4c2d1e-6f1b-4c39-9d5a-0123456789ab","name":"bench_noop","args":[{"type":"string","value":"0123456789abcdef0123456789abcdef"},{"type":"int","value":123456}]}`)

func BenchmarkDecodeBindCall(b *testing.B) {
	h, m := benchHandler(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := handle(h, m); err != nil {
			b.Fatal(err)
		}
	}
}

// benchHandler returns a handler and a message of 160 bytes for it.
func benchHandler(t testing.TB) (*taskHandler, broker.Message) {
	t.Helper()
	plans, err := (&Server{}).planTasks(&WorkerConfig{}, map[string]TaskConfig{"bench_noop": {Function: func(string, int) {}}})
	if err != nil {
		t.Fatal(err)
	}
	m := broker.Message{Body: benchBody, ID: "8d4c2d1e-6f1b-4c39-9d5a-0123456789ab", Type: "bench_noop"}
	return &taskHandler{tasks: plans}, m
}

// handle does what the engine does with a message.
func handle(h *taskHandler, m broker.Message) error {
	c := h.NewCall()
	c.Delivery.Message, c.ID, c.Name = m, m.ID, m.Type
	if err := h.Identify(c); err != nil {
		return err
	}
	if err := h.Find(c); err != nil {
		return err
	}
	if _, err := h.Bind(c); err != nil {
		return err
	}
	err := h.Run(context.Background(), c)
	h.Recycle(c)
	return err
}

// bindTo returns the bound arguments.
func bindTo(p *callPlan, args []wire.Value) (*boundCall, error) {
	var b boundCall
	err := p.bind(&b, args)
	return &b, err
}

// selfMade sets a finalizer on itself, for which it must be allocated by itself: the runtime ends the process otherwise.
type selfMade struct{ name *string }

func (s *selfMade) UnmarshalJSON(raw []byte) error {
	runtime.SetFinalizer(s, func(*selfMade) {})
	text := string(raw)
	s.name = &text
	return nil
}

func TestAParameterWithItsOwnMethodIsAllocatedByItself(t *testing.T) {
	t.Parallel()
	got := ""
	plan, err := newCallPlan("t", func(n int, s selfMade, m int) { got = fmt.Sprintf("%d %s %d", n, *s.name, m) }, false)
	if err != nil {
		t.Fatal(err)
	}
	bound, err := bindTo(plan, wireArgs(t, Args(1, struct{}{}, 2)))
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.call(t.Context(), "", bound); err != nil || got != "1 {} 2" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestArgumentsThatDoNotFitAreNotKept(t *testing.T) {
	t.Parallel()
	plan, err := newCallPlan("t", func([]int, int) {}, false)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bindTo(plan, wireArgs(t, Args([]int{1, 2}, "no")))
	if err == nil || !reflect.DeepEqual(*b, boundCall{}) {
		t.Errorf("%v, %v", b, err)
	}
}
