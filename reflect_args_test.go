package dispatcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/seed-416683c9/dispatcher/internal/text"
	"github.com/seed-416683c9/dispatcher/internal/wire"
)

type (
	status   int8
	label    string
	labels   []label
	matrix   [][]float64
	order    struct{ ID int64 }
	tree     []tree
	loop     *loop
	celsius  complex128
	callback func()
)

func (c *celsius) UnmarshalText(text []byte) error {
	*c = celsius(complex(float64(len(text)), 0))
	return nil
}

// bindOne binds one argument of a declared type to a parameter of type P.
func bindOne[P any](typ, raw string) (got P, err error) {
	plan, err := newCallPlan("n", func(p P) { got = p }, false)
	if err != nil {
		return got, err
	}
	bound, err := plan.bind([]wire.Value{{Type: typ, Value: json.RawMessage(raw)}})
	if err != nil {
		return got, err
	}
	return got, plan.call(context.Background(), "", bound)
}

func TestArgsInferTypes(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, c := range []struct {
		in   any
		want TaskArgument
	}{
		{true, TaskArgument{"bool", true}},
		{"s", TaskArgument{"string", "s"}},
		{1, TaskArgument{"int", 1}},
		{int8(1), TaskArgument{"int8", int8(1)}},
		{int16(1), TaskArgument{"int16", int16(1)}},
		{int32(1), TaskArgument{"int32", int32(1)}},
		{int64(1), TaskArgument{"int64", int64(1)}},
		{uint(1), TaskArgument{"uint", uint(1)}},
		{uint8(1), TaskArgument{"uint8", uint8(1)}},
		{uint16(1), TaskArgument{"uint16", uint16(1)}},
		{uint32(1), TaskArgument{"uint32", uint32(1)}},
		{uint64(1), TaskArgument{"uint64", uint64(1)}},
		{float32(1), TaskArgument{"float32", float32(1)}},
		{1.0, TaskArgument{"float64", 1.0}},
		{status(3), TaskArgument{"int8", int8(3)}},
		{label("l"), TaskArgument{"string", "l"}},
		{time.Second, TaskArgument{"int64", int64(time.Second)}},
		{json.Number("5"), TaskArgument{"string", "5"}},
		{now, TaskArgument{"time.Time", now}},
		{[]byte{1}, TaskArgument{"[]byte", []byte{1}}},
		{net.IP{1, 2}, TaskArgument{"[]byte", []byte{1, 2}}},
		{[]byte(nil), TaskArgument{"[]byte", []byte(nil)}},
		{[]string{"a"}, TaskArgument{"[]string", []string{"a"}}},
		{labels{"a"}, TaskArgument{"[]string", []string{"a"}}},
		{labels(nil), TaskArgument{"[]string", []string(nil)}},
		{[]time.Duration{1}, TaskArgument{"[]int64", []int64{1}}},
		{map[label]status{"a": 1}, TaskArgument{"map[string]int8", map[string]int8{"a": 1}}},
		{map[label]status(nil), TaskArgument{"map[string]int8", map[string]int8(nil)}},
		{map[string]byte{"a": 1}, TaskArgument{"map[string]uint8", map[string]uint8{"a": 1}}},
		{nil, TaskArgument{"json", nil}},
		{json.RawMessage("1"), TaskArgument{"json", json.RawMessage("1")}},
		{order{1}, TaskArgument{"json", order{1}}},
		{(*order)(nil), TaskArgument{"json", (*order)(nil)}},
		{[2]int{}, TaskArgument{"json", [2]int{}}},
		{matrix{{1}}, TaskArgument{"json", matrix{{1}}}},
		{[]any{1}, TaskArgument{"json", []any{1}}},
		{[]error{nil}, TaskArgument{"json", []error{nil}}},
		{map[int]string{}, TaskArgument{"json", map[int]string{}}},
		{[]time.Time{now}, TaskArgument{"json", []time.Time{now}}},
		{tree{}, TaskArgument{"json", tree{}}},
		{loop(nil), TaskArgument{"", loop(nil)}},
		{1i, TaskArgument{"", 1i}},
		{uintptr(1), TaskArgument{"", uintptr(1)}},
		{unsafe.Pointer(nil), TaskArgument{"", unsafe.Pointer(nil)}},
		{(chan int)(nil), TaskArgument{"", (chan int)(nil)}},
		{callback(nil), TaskArgument{"", callback(nil)}},
		{[]chan int{}, TaskArgument{"", []chan int{}}},
		{[1]uintptr{}, TaskArgument{"", [1]uintptr{}}},
		{map[string][]func(){}, TaskArgument{"", map[string][]func(){}}},
		{map[float64]int{}, TaskArgument{"", map[float64]int{}}},
		{(*complex64)(nil), TaskArgument{"", (*complex64)(nil)}},
	} {
		got := Args(c.in)
		if len(got) != 1 || got[0].Type != c.want.Type || !reflect.DeepEqual(got[0].Value, c.want.Value) {
			t.Errorf("Args(%T %v) = %#v, want %#v", c.in, c.in, got, c.want)
		}
	}
	if Args() != nil || NewTask("n").Args != nil {
		t.Error("no values: want nil")
	}
	if task := NewTask("n", 1, "x"); task.Name != "n" || !reflect.DeepEqual(task.Args, Args(1, "x")) {
		t.Errorf("NewTask: %+v", task)
	}
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
		//lint:ignore ST1008 an error that is not the last result is ignored, which is the point
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
		bound, err := plan.bind(wireArgs(t, c.args))
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

// wireArgs takes arguments over the wire.
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
				bound, err := plan.bind([]wire.Value{{Type: "string", Value: fmt.Appendf(nil, `"%d"`, n)}, {Type: "int", Value: fmt.Append(nil, n)}})
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

func TestD1UnknownTypesAreErrorsAndNeverPanics(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "interface {}", "int128", "INT", "Int64", " int", "int ", "[]", "[]any", "[][]int", "[]json", "[][]byte", "[2]int",
		"map[string]", "map[int]string", "map[string]any", "map[string][]int", "[]time.Time", "complex128", "uintptr", "error", "*int", strings.Repeat("x", 1<<20), "\x00"} {
		for _, raw := range []string{"1", "null", `"x"`, "[]", "{}"} {
			_, err := bindOne[any](name, raw)
			bad, ok := errors.AsType[*ArgumentError](err)
			if !ok || bad.Position != 0 || bad.Want != "a known type" || len(bad.Got) > 200 {
				t.Errorf("type %q, value %s: %v", text.Excerpt(name), raw, err)
			}
		}
	}
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
		_, err = plan.bind(c.args)
		if bad, ok := errors.AsType[*ArgumentError](err); !ok || *bad != c.want {
			t.Errorf("%T: got %v, want %v", c.fn, err, &c.want)
		}
	}
}

// integer is what one declared type can hold, as text.
var integerRanges = []struct{ name, below, min, max, above string }{
	{"int8", "-129", "-128", "127", "128"},
	{"int16", "-32769", "-32768", "32767", "32768"},
	{"int32", "-2147483649", "-2147483648", "2147483647", "2147483648"},
	{"int64", "-9223372036854775809", "-9223372036854775808", "9223372036854775807", "9223372036854775808"},
	{"int", "-9223372036854775809", "-9223372036854775808", "9223372036854775807", "9223372036854775808"},
	{"uint8", "-1", "0", "255", "256"},
	{"uint16", "-1", "0", "65535", "65536"},
	{"uint32", "-1", "0", "4294967295", "4294967296"},
	{"uint64", "-1", "0", "18446744073709551615", "18446744073709551616"},
	{"uint", "-1", "0", "18446744073709551615", "18446744073709551616"},
}

func TestD9IntegersAreExactOrRefused(t *testing.T) {
	t.Parallel()
	params := map[string]func(typ, raw string) (any, error){
		"int8": anyOf[int8], "int16": anyOf[int16], "int32": anyOf[int32], "int64": anyOf[int64], "int": anyOf[int],
		"uint8": anyOf[uint8], "uint16": anyOf[uint16], "uint32": anyOf[uint32], "uint64": anyOf[uint64], "uint": anyOf[uint],
	}
	for _, r := range integerRanges {
		for declared := range params { // declared as any of the family, into a parameter of r.name
			for _, text := range []string{r.min, r.max, r.below, r.above} {
				got, err := params[r.name](declared, text)
				fits := (text == r.min || text == r.max) && inRange(declared, text)
				if fits && (err != nil || fmt.Sprint(got) != text) {
					t.Errorf("%s %s into %s: got %v, %v", declared, text, r.name, got, err)
				}
				if !fits && !errors.As(err, new(*ArgumentError)) {
					t.Errorf("%s %s into %s: got %v, want an error", declared, text, r.name, got)
				}
			}
		}
		for _, raw := range []string{"1.5", "1e-1", "1e400", "1e999999999", "-1e999999999999999999999", "0.1e0", `"1"`, "true", "null", "[]", "{}", "1.9", "1e-999999999"} {
			if got, err := params[r.name](r.name, raw); !errors.As(err, new(*ArgumentError)) {
				t.Errorf("%s %s: got %v, want an error", r.name, raw, got)
			}
		}
		for raw, want := range map[string]string{"5.0": "5", "1e2": "100", "1.0E+2": "100", "12e1": "120", "1200e-2": "12", "-0": "0", "-0.0e5": "0",
			"0e999999999": "0", "0.000e-999999999": "0", "0.0005e4": "5", "1" + strings.Repeat("0", 500) + "e-500": "1", "0." + strings.Repeat("0", 500) + "7e501": "7"} {
			if got, err := params[r.name](r.name, raw); err != nil || fmt.Sprint(got) != want {
				t.Errorf("%s %s: got %v, %v, want %s", r.name, text.Excerpt(raw), got, err, want)
			}
		}
	}
}

func anyOf[P any](typ, raw string) (any, error) {
	got, err := bindOne[P](typ, raw)
	return got, err
}

func inRange(name, text string) bool {
	for _, r := range integerRanges {
		if r.name == name {
			return inInteger(text, r.min, r.max)
		}
	}
	return false
}

// triangle has a decoding of its own, which may do with the elements what it wants.
type triangle [3]int

func (*triangle) UnmarshalJSON([]byte) error { return nil }

func TestValuesBindWithoutLossOrNotAtAll(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 8, 1, 12, 0, 0, 5, time.UTC)
	for _, c := range []struct {
		bind      func(typ, raw string) (any, error)
		typ, raw  string
		want      any // nil with wantErr
		wantError string
	}{
		{anyOf[bool], "bool", "true", true, ""},
		{anyOf[bool], "bool", "1", nil, "want bool, got 1"},
		{anyOf[bool], "bool", "null", nil, "want bool, got null"},
		{anyOf[label], "string", `"a\ud83d\ude42\n"`, label("a🙂\n"), ""},
		{anyOf[string], "string", `5`, nil, "want string, got 5"},
		{anyOf[*string], "string", `"a"`, new("a"), ""},
		{anyOf[[]byte], "string", `"a"`, nil, `want []uint8, got string "a"`},
		{anyOf[order], "string", `"a"`, nil, "want dispatcher.order"},
		{anyOf[status], "int64", "127", status(127), ""},
		{anyOf[status], "int64", "128", nil, "want dispatcher.status, got int64 128"},
		{anyOf[float64], "int", "1", nil, "want float64, got int 1"},
		{anyOf[int], "float64", "1", nil, "want int, got float64 1"},
		{anyOf[float64], "float64", "9007199254740993", 9007199254740992.0, ""},
		{anyOf[float64], "float64", "1e999", nil, "want float64, got 1e999"},
		{anyOf[float32], "float32", "0.1", float32(0.1), ""},
		{anyOf[float32], "float32", "1e300", nil, "want float32, got 1e300"},
		{anyOf[float64], "float32", "0.1", float64(float32(0.1)), ""},
		{anyOf[float32], "float64", "0.5", float32(0.5), ""},
		{anyOf[float32], "float64", "0.1", nil, "want float32, got float64 0.1"},
		{anyOf[float32], "float64", "1e300", nil, "want float32, got float64 1e300"},
		{anyOf[time.Duration], "int64", "5", time.Duration(5), ""},
		{anyOf[time.Duration], "time.Duration", "5", time.Duration(5), ""},
		{anyOf[int64], "time.Duration", "5", int64(5), ""},
		{anyOf[int32], "time.Duration", "5", nil, "want int32, got time.Duration 5"},
		{anyOf[any], "time.Duration", "5", time.Duration(5), ""},
		{anyOf[time.Time], "time.Time", `"2026-08-01T12:00:00.000000005Z"`, at, ""},
		{anyOf[*time.Time], "time.Time", `"2026-08-01T12:00:00.000000005Z"`, &at, ""},
		{anyOf[any], "time.Time", `"2026-08-01T12:00:00.000000005Z"`, at, ""},
		{anyOf[time.Time], "time.Time", `"2026-08-01T12:00:00,5Z"`, nil, "want time.Time"},
		{anyOf[time.Time], "time.Time", `"2026-08-01T2:00:00.5Z"`, nil, "want time.Time"},
		{anyOf[time.Time], "time.Time", `"2026-08-01T12:00:00.1234567891Z"`, nil, "want time.Time"},
		{anyOf[time.Time], "time.Time", `"2026-08-01T12:00:00.5"`, nil, "want time.Time"},
		{anyOf[time.Time], "time.Time", `"2026-08-01 12:00:00Z"`, nil, "want time.Time"},
		{anyOf[time.Time], "time.Time", `""`, nil, "want time.Time"},
		{anyOf[time.Time], "time.Time", `"2026-02-30T12:00:00Z"`, nil, "want time.Time"},
		{anyOf[time.Time], "time.Time", "null", nil, "want time.Time, got null"},
		{anyOf[string], "time.Time", `"2026-08-01T12:00:00Z"`, nil, "want string"},
		{anyOf[[]byte], "[]byte", `"AAE="`, []byte{0, 1}, ""},
		{anyOf[net.IP], "[]byte", `"AAE="`, net.IP{0, 1}, ""},
		{anyOf[*[]byte], "[]byte", `"AAE="`, &[]byte{0, 1}, ""},
		{anyOf[[]byte], "[]byte", `null`, []byte(nil), ""},
		{anyOf[any], "[]byte", `""`, []byte{}, ""},
		{anyOf[[]byte], "[]byte", `"AAE"`, nil, `want []byte, got "AAE"`},
		{anyOf[[]byte], "[]byte", `[1]`, nil, `want []byte, got [1]`},
		{anyOf[string], "[]byte", `"AAE="`, nil, `want string, got []byte "AAE="`},
		{anyOf[[]int8], "[]int64", `[1, -128]`, []int8{1, -128}, ""},
		{anyOf[[]int8], "[]int64", `[1, 128]`, nil, "want int8, got int64 128 at [1]"},
		{anyOf[[]int8], "[]int8", `[1, null]`, nil, "want int8, got null at [1]"},
		{anyOf[[]byte], "[]uint8", `[1,255]`, []byte{1, 255}, ""},
		{anyOf[labels], "[]string", `["a"]`, labels{"a"}, ""},
		{anyOf[[]*int], "[]int", `[7]`, []*int{new(7)}, ""},
		{anyOf[[]any], "[]int", `[7]`, []any{7}, ""},
		{anyOf[any], "[]string", `["a"]`, []string{"a"}, ""},
		{anyOf[any], "[]string", `null`, []string(nil), ""},
		{anyOf[[]string], "[]string", `{}`, nil, "want []string, got {}"},
		{anyOf[[]string], "[]int", `[]`, nil, "want []string, got []int []"},
		{anyOf[[][1 << 28]byte], "[]int", `[1,2,3]`, nil, "got []int [1,2,3]"}, // and no attempt to make it
		{anyOf[[1]int], "[]int", `[1]`, nil, "want [1]int, got []int [1]"},
		{anyOf[map[label]int8], "map[string]int", `{"a": 1, "b\n": 2}`, map[label]int8{"a": 1, "b\n": 2}, ""},
		{anyOf[map[string]any], "map[string]int8", `{"a": 1}`, map[string]any{"a": int8(1)}, ""},
		{anyOf[any], "map[string]bool", `{"a": true}`, map[string]bool{"a": true}, ""},
		{anyOf[map[string]int], "map[string]int", `null`, map[string]int(nil), ""},
		{anyOf[map[string]int], "map[string]int", `[]`, nil, "want map[string]int, got []"},
		{anyOf[map[string]int], "map[string]int", `{"a":1,"\u0061":2}`, nil, "twice"},
		{anyOf[map[string]int8], "map[string]int", `{"a":300}`, nil, `want int8, got int 300 at ["a"]`},
		{anyOf[map[int]int], "map[string]int", `{"1":1}`, nil, "want map[int]int"},
		{anyOf[order], "json", `{"id": 9007199254740993}`, order{9007199254740993}, ""},
		{anyOf[*order], "json", `null`, (*order)(nil), ""},
		{anyOf[order], "json", `{"ID": "x"}`, nil, "want dispatcher.order, got json: cannot unmarshal string"},
		{anyOf[order], "json", `{"ID": 9223372036854775808}`, nil, "want dispatcher.order"},
		{anyOf[matrix], "json", `[[1.5],[]]`, matrix{{1.5}, {}}, ""},
		{anyOf[any], "json", `{"a":[9007199254740993,1.50]}`, map[string]any{"a": []any{json.Number("9007199254740993"), json.Number("1.50")}}, ""},
		{anyOf[json.RawMessage], "json", `{"a": 1}`, json.RawMessage(`{"a": 1}`), ""},
		{anyOf[[2]int], "json", `[1,2]`, [2]int{1, 2}, ""},
		{anyOf[[2]int], "json", `[1,2,3]`, nil, "want [2]int, got 3 elements in a [2]int"},
		{anyOf[[2]int], "json", `[1]`, nil, "1 elements in a [2]int"},
		{anyOf[[2]int], "json", `null`, [2]int{}, ""},
		{anyOf[*[2]int], "json", `[]`, nil, "0 elements in a [2]int"},
		{anyOf[[][2]int], "json", `[[1,2],[3]]`, nil, "1 elements in a [2]int"},
		{anyOf[map[string][2]int], "json", `{"a":[1,2,3]}`, nil, "3 elements in a [2]int"},
		{anyOf[struct{ A *struct{ In [1]int } }], "json", `{"a":{"in":[1,2]}}`, nil, "2 elements in a [1]int"},
		{anyOf[struct {
			A [1]int `json:"b"`
			B any    `json:"a"`
		}], "json", `{"a":[1,2],"A":[3,4],"c":[1,2],"b":[5]}`, struct {
			A [1]int `json:"b"`
			B any    `json:"a"`
		}{[1]int{5}, []any{json.Number("3"), json.Number("4")}}, ""},
		{anyOf[triangle], "json", `[1,2,3,4]`, triangle{}, ""}, // decodes itself
		{anyOf[struct{ F float64 }], "json", `{"F":9007199254740993}`, nil, "9007199254740993 in a float64"},
		{anyOf[struct{ F float64 }], "json", `{"F":9007199254740992}`, struct{ F float64 }{1 << 53}, ""},
		{anyOf[struct{ F []float64 }], "json", `{"F":[123456789012345680000,0.12345678901234567890]}`, struct{ F []float64 }{[]float64{123456789012345680000, 0.12345678901234567890}}, ""},
		{anyOf[[]float32], "json", `[16777217]`, nil, "16777217 in a float32"},
		{anyOf[int8], "json", `127`, int8(127), ""},
		{anyOf[int8], "json", `128`, nil, "want int8"},
		{anyOf[int8], "json", `null`, nil, "want int8, got json null"},
		{anyOf[string], "json", `5`, nil, "want string"},
		{anyOf[celsius], "json", `"abc"`, celsius(3), ""},
		{anyOf[tree], "json", `[[],[[]]]`, tree{{}, {{}}}, ""},
		{anyOf[**int], "int", `1`, nil, "want **int"},
		{anyOf[**int], "[]int", `[1]`, nil, "want **int"},
		{anyOf[panicking], "json", `1`, nil, "panicked: boom"},
		{anyOf[[]panicking], "json", `[1]`, nil, "panicked: boom"},
	} {
		got, err := c.bind(c.typ, c.raw)
		if c.wantError == "" {
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%s %s: got %#v, %v, want %#v", c.typ, c.raw, got, err, c.want)
			}
			continue
		}
		bad, ok := errors.AsType[*ArgumentError](err)
		if !ok || bad.Task != "n" || bad.Position != 0 || !strings.Contains(bad.Error(), c.wantError) {
			t.Errorf("%s %s: got %#v, %v, want %q", c.typ, c.raw, got, err, c.wantError)
		}
	}
}

func TestArgumentErrorsQuoteLittle(t *testing.T) {
	t.Parallel()
	huge := strings.Repeat("é", 1<<20)
	for _, c := range []struct{ typ, raw string }{
		{"int", `"` + huge + `"`}, {"[]byte", `"` + huge + `"`}, {"bool", strings.Repeat("9", 1<<20)}, {"[]int", `["` + huge + `"]`},
		{"map[string]int", `{"` + huge + `":"` + huge + `"}`}, {huge, "1"}, {"json", `"` + huge + `"`}, {"time.Time", `"` + huge + `"`},
	} {
		_, err := bindOne[int8](c.typ, c.raw)
		if err == nil || len(err.Error()) > 400 || strings.ContainsRune(err.Error(), '\uFFFD') {
			t.Errorf("%s: %v", text.Excerpt(c.typ), err)
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

// roundTrip sends a value to a parameter of its own type and, but for json, to one of type any.
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

// benchBody is the 160 B body of reference/bench.md §7.
var benchBody = []byte(`{"uuid":"8d4c2d1e-6f1b-4c39-9d5a-0123456789ab","name":"bench_noop","args":[{"type":"string","value":"0123456789abcdef0123456789abcdef"},{"type":"int","value":123456}]}`)

func BenchmarkDecodeBindCall(b *testing.B) {
	calls := 0
	plan, err := newCallPlan("bench_noop", func(string, int) { calls++ }, false)
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		task, err := wire.Decode(benchBody)
		if err != nil {
			b.Fatal(err)
		}
		bound, err := plan.bind(task.Args)
		if err != nil {
			b.Fatal(err)
		}
		if err := plan.call(ctx, task.UUID, bound); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := wire.Decode(benchBody); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	task := NewTask("bench_noop", "0123456789abcdef0123456789abcdef", 123456)
	task.UUID = "8d4c2d1e-6f1b-4c39-9d5a-0123456789ab"
	b.ReportAllocs()
	for b.Loop() {
		if _, err := encodeTask(task); err != nil {
			b.Fatal(err)
		}
	}
}
