package wire

import (
	"encoding/json"
	"fmt"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/text"
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

// UnmarshalText lets JSON fill a celsius, although it is a complex number.
func (c *celsius) UnmarshalText(text []byte) error {
	*c = celsius(complex(float64(len(text)), 0))
	return nil
}

// fill sets a parameter of type P from one argument.
func fill[P any](typ, raw string) (P, *Mismatch) {
	var got P
	bad := Fill(reflect.ValueOf(&got).Elem(), ParseType(typ), Value{typ, json.RawMessage(raw)})
	return got, bad
}

func anyOf[P any](typ, raw string) (any, *Mismatch) { return fill[P](typ, raw) }

// said returns the text of a mismatch in an ArgumentError of the root package.
func said(bad *Mismatch) string { return fmt.Sprintf("want %s, got %s", bad.Want, bad.Got) }

// fillCase is an argument, and the value or the mismatch that it gives a parameter.
type fillCase struct {
	fill     func(typ, raw string) (any, *Mismatch)
	typ, raw string
	want     any
	wantBad  string // part of the text of the mismatch; "" = none
}

func checkFills(t *testing.T, cases []fillCase) {
	t.Helper()
	for _, c := range cases {
		got, bad := c.fill(c.typ, c.raw)
		if c.wantBad == "" {
			if bad != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%s %s: got %#v, %+v, want %#v", c.typ, c.raw, got, bad, c.want)
			}
			continue
		}
		if bad == nil || !strings.Contains(said(bad), c.wantBad) {
			t.Errorf("%s %s: got %#v, %+v, want %q", c.typ, c.raw, got, bad, c.wantBad)
		}
	}
}

func TestValuesBindWithoutLossOrNotAtAll(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 8, 1, 12, 0, 0, 5, time.UTC)
	checkFills(t, []fillCase{
		{anyOf[bool], "bool", "true", true, ""},
		{anyOf[bool], "bool", "1", nil, "want bool, got 1"},
		{anyOf[bool], "bool", "null", nil, "want bool, got null"},
		{anyOf[label], "string", `"a\ud83d\ude42\n"`, label("a🙂\n"), ""},
		{anyOf[string], "string", `5`, nil, "want string, got 5"},
		{anyOf[*string], "string", `"a"`, new("a"), ""},
		{anyOf[[]byte], "string", `"a"`, nil, `want []uint8, got string "a"`},
		{anyOf[order], "string", `"a"`, nil, "want wire.order"},
		{anyOf[status], "int64", "127", status(127), ""},
		{anyOf[status], "int64", "128", nil, "want wire.status, got int64 128"},
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
		{anyOf[[][1 << 28]byte], "[]int", `[1,2,3]`, nil, "got []int [1,2,3]"}, // without allocating the elements
		{anyOf[[1]int], "[]int", `[1]`, nil, "want [1]int, got []int [1]"},
		{anyOf[map[label]int8], "map[string]int", `{"a": 1, "b\n": 2}`, map[label]int8{"a": 1, "b\n": 2}, ""},
		{anyOf[map[string]any], "map[string]int8", `{"a": 1}`, map[string]any{"a": int8(1)}, ""},
		{anyOf[any], "map[string]bool", `{"a": true}`, map[string]bool{"a": true}, ""},
		{anyOf[map[string]int], "map[string]int", `null`, map[string]int(nil), ""},
		{anyOf[map[string]int], "map[string]int", `[]`, nil, "want map[string]int, got []"},
		{anyOf[map[string]int], "map[string]int", `{"a":1,"\u0061":2}`, nil, "duplicate key"},
		{anyOf[map[string]int8], "map[string]int", `{"a":300}`, nil, `want int8, got int 300 at ["a"]`},
		{anyOf[map[int]int], "map[string]int", `{"1":1}`, nil, "want map[int]int"},
		{anyOf[order], "json", `{"id": 9007199254740993}`, order{9007199254740993}, ""},
		{anyOf[*order], "json", `null`, (*order)(nil), ""},
		{anyOf[order], "json", `{"ID": "x"}`, nil, "want wire.order, got json: cannot unmarshal string"},
		{anyOf[order], "json", `{"ID": 9223372036854775808}`, nil, "want wire.order"},
		{anyOf[matrix], "json", `[[1.5],[]]`, matrix{{1.5}, {}}, ""},
		{anyOf[any], "json", `{"a":[9007199254740993,1.50]}`, map[string]any{"a": []any{json.Number("9007199254740993"), json.Number("1.50")}}, ""},
		{anyOf[json.RawMessage], "json", `{"a": 1}`, json.RawMessage(`{"a": 1}`), ""},
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
	})
}

func TestMismatchesQuoteLittle(t *testing.T) {
	t.Parallel()
	huge := strings.Repeat("é", 1<<20)
	for _, c := range []struct{ typ, raw string }{
		{"int", `"` + huge + `"`}, {"[]byte", `"` + huge + `"`}, {"bool", strings.Repeat("9", 1<<20)}, {"[]int", `["` + huge + `"]`},
		{"map[string]int", `{"` + huge + `":"` + huge + `"}`}, {huge, "1"}, {"json", `"` + huge + `"`}, {"time.Time", `"` + huge + `"`},
	} {
		_, bad := fill[int8](c.typ, c.raw)
		if bad == nil || len(said(bad)) > 380 || strings.ContainsRune(said(bad), '\uFFFD') {
			t.Errorf("%s: %+v", text.Excerpt(c.typ), bad)
		}
	}
}

// fuzzParams has one function for each type of parameter. Each fills such a parameter from an argument.
var fuzzParams = []func(typ, raw string) (any, *Mismatch){
	anyOf[bool], anyOf[string], anyOf[int], anyOf[int8], anyOf[int16], anyOf[int32], anyOf[int64],
	anyOf[uint], anyOf[uint8], anyOf[uint16], anyOf[uint32], anyOf[uint64], anyOf[float32], anyOf[float64],
	anyOf[any], anyOf[*any], anyOf[label], anyOf[status], anyOf[*int8], anyOf[time.Time], anyOf[*time.Time], anyOf[time.Duration],
	anyOf[[]byte], anyOf[[]string], anyOf[labels], anyOf[[]int8], anyOf[[]uint64], anyOf[[]any], anyOf[[]*float32], anyOf[[3]int],
	anyOf[map[string]int], anyOf[map[label]any], anyOf[map[string]string], anyOf[map[int8]order],
	anyOf[json.RawMessage], anyOf[json.Number], anyOf[order], anyOf[*order], anyOf[tree], anyOf[**int], anyOf[panicking], anyOf[celsius],
}

// Nothing panics, every mismatch is short, and an integer that arrives is the one in the text.
func FuzzBindArgument(f *testing.F) {
	for _, name := range scalarNames {
		f.Add(name, []byte("1"))
	}
	for _, body := range goldenBodies(f) {
		task, err := Decode(body)
		if err != nil {
			f.Fatal(err)
		}
		for _, arg := range task.Args {
			f.Add(arg.Type, []byte(arg.Value))
		}
	}
	f.Fuzz(func(t *testing.T, typ string, raw []byte) {
		if !json.Valid(raw) || len(raw) > 1<<16 {
			return // Decode returns no others
		}
		raw = trimSpace(raw)
		for i, fillParam := range fuzzParams {
			got, bad := fillParam(typ, string(raw))
			if bad != nil {
				if bad.Want == "" || len(said(bad)) > 780 {
					t.Fatalf("%q %s into %d: %+v", typ, raw, i, bad)
				}
				continue
			}
			if ParseType(typ).Shape == shapeUnknown {
				t.Fatalf("unknown type %q gave %#v", typ, got)
			}
			switch got.(type) {
			case int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64, status, time.Duration:
				if want := exactInteger(string(raw)); want == nil || want.String() != bareInteger(got) {
					t.Fatalf("%q %s gave %T %v, want %v", typ, raw, got, got, want)
				}
			}
		}
		if ParseType(typ).Shape != shapeUnknown && json.Valid(raw) && badText(raw) < 0 {
			// A value that encodes under a declared type also binds to any.
			if _, bad := AppendArgument(nil, Argument{typ, json.RawMessage(raw)}); bad == nil {
				if _, bad := fill[any](typ, string(raw)); bad != nil {
					t.Fatalf("%q %s encodes and does not bind: %+v", typ, raw, bad)
				}
			}
		}
	})
}

// bareInteger prints the integer itself, even if its type has a String method.
func bareInteger(v any) string { return fmt.Sprintf("%d", v) }
