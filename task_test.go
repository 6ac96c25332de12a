package dispatcher

import (
	"encoding/json"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/seed-416683c9/dispatcher/internal/wire"
)

var updateWire = flag.Bool("update-wire", false, "write the golden files of testdata/wire; a change in them breaks running workers")

// golden are tasks whose bytes on the wire may never change. A func(...any) receives the arguments in want.
var golden = []struct {
	file string
	task *Task
	want []any
}{
	{"no_args_null.json", &Task{UUID: "8d4c2d1e-0000-4000-8000-000000000001", Name: "tick"}, nil},
	{"no_args_empty.json", &Task{UUID: "u", Name: "tick", Args: []TaskArgument{}}, nil},
	{"seed_example.json", &Task{UUID: "u-1", Name: "task_1", Args: []TaskArgument{{"string", "a<b"}, {"int64", int64(9007199254740993)}}},
		[]any{"a<b", int64(9007199254740993)}},
	{"scalars_min.json", NewTask("scalars", false, "", math.MinInt, int8(math.MinInt8), int16(math.MinInt16), int32(math.MinInt32), int64(math.MinInt64),
		uint(0), uint8(0), uint16(0), uint32(0), uint64(0), float32(-math.MaxFloat32), -math.MaxFloat64),
		[]any{false, "", math.MinInt, int8(math.MinInt8), int16(math.MinInt16), int32(math.MinInt32), int64(math.MinInt64),
			uint(0), uint8(0), uint16(0), uint32(0), uint64(0), float32(-math.MaxFloat32), -math.MaxFloat64}},
	{"scalars_max.json", NewTask("scalars", true, "\U0010FFFF", math.MaxInt, int8(math.MaxInt8), int16(math.MaxInt16), int32(math.MaxInt32), int64(math.MaxInt64),
		uint(math.MaxUint), uint8(math.MaxUint8), uint16(math.MaxUint16), uint32(math.MaxUint32), uint64(math.MaxUint64), float32(math.SmallestNonzeroFloat32), math.SmallestNonzeroFloat64),
		[]any{true, "\U0010FFFF", math.MaxInt, int8(math.MaxInt8), int16(math.MaxInt16), int32(math.MaxInt32), int64(math.MaxInt64),
			uint(math.MaxUint), uint8(math.MaxUint8), uint16(math.MaxUint16), uint32(math.MaxUint32), uint64(math.MaxUint64), float32(math.SmallestNonzeroFloat32), math.SmallestNonzeroFloat64}},
	{"escapes.json", NewTask("esc<&>\u2028", "\"\\/\b\f\n\r\t\x00\x1f\x7f", "<script>&amp;</script>", "\u2028\u2029", "é 漢 🙂", "\uFFFD"),
		[]any{"\"\\/\b\f\n\r\t\x00\x1f\x7f", "<script>&amp;</script>", "\u2028\u2029", "é 漢 🙂", "\uFFFD"}},
	{"extended.json", NewTask("extended", []byte{0, 1, 0xfe, 0xff}, []byte{}, time.Date(2026, 8, 1, 12, 30, 15, 123456789, time.FixedZone("", 2*3600)),
		1500*time.Millisecond, []string{"a", "<b>"}, []int64{math.MinInt64, math.MaxInt64}, []string(nil), map[string]int64{"b": 2, "a": 1},
		map[string]bool{}, nil, struct {
			A int    `json:"a"`
			B string `json:"b"`
		}{1, "x"}, json.RawMessage(`{"n":9007199254740993}`)),
		[]any{[]byte{0, 1, 0xfe, 0xff}, []byte{}, time.Date(2026, 8, 1, 12, 30, 15, 123456789, time.FixedZone("", 2*3600)),
			int64(1500 * time.Millisecond), []string{"a", "<b>"}, []int64{math.MinInt64, math.MaxInt64}, []string(nil), map[string]int64{"b": 2, "a": 1},
			map[string]bool{}, nil, map[string]any{"a": json.Number("1"), "b": "x"}, map[string]any{"n": json.Number("9007199254740993")}}},
	{"duration_by_hand.json", &Task{UUID: "u", Name: "d", Args: []TaskArgument{{"time.Duration", time.Minute}}}, []any{time.Minute}},
}

func TestGoldenWireBytes(t *testing.T) {
	t.Parallel()
	for _, g := range golden {
		t.Run(g.file, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join("testdata", "wire", g.file)
			body, err := encodeTask(g.task)
			if err != nil {
				t.Fatal(err)
			}
			if *updateWire {
				if err := os.WriteFile(path, body, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(body) != string(file) {
				t.Errorf("encoded\n%s\nwant\n%s", body, file)
			}
			if theirs, err := json.Marshal(g.task); err != nil || string(theirs) != string(file) {
				t.Errorf("json.Marshal, as gofort/dispatcher does: %s, %v", theirs, err)
			}
			got := receive(t, file)
			if !equalValues(got, g.want) {
				t.Errorf("received %#v\nwant     %#v", got, g.want)
			}
		})
	}
}

// receive decodes a body and calls a func(...any) with its arguments.
func receive(t testing.TB, body []byte) (got []any) {
	t.Helper()
	task, err := wire.Decode(body)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := newCallPlan(task.Name, func(args ...any) { got = args }, false)
	if err != nil {
		t.Fatal(err)
	}
	bound, err := bindTo(plan, task.Args)
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.call(t.Context(), "", bound); err != nil {
		t.Fatal(err)
	}
	return got
}

// equalValues is DeepEqual, except that it compares times by instant and offset.
func equalValues(a, b []any) bool {
	return slices.EqualFunc(a, b, func(a, b any) bool {
		ta, isTime := a.(time.Time)
		if tb, ok := b.(time.Time); ok && isTime {
			return ta.Format(time.RFC3339Nano) == tb.Format(time.RFC3339Nano)
		}
		return reflect.DeepEqual(a, b)
	})
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
		{int64(1), TaskArgument{"int64", int64(1)}},
		{1.0, TaskArgument{"float64", 1.0}},
		{status(3), TaskArgument{"int8", int8(3)}},
		{time.Second, TaskArgument{"int64", int64(time.Second)}},
		{now, TaskArgument{"time.Time", now}},
		{[]byte{1}, TaskArgument{"[]byte", []byte{1}}},
		{[]byte(nil), TaskArgument{"[]byte", []byte(nil)}},
		{labels{"a"}, TaskArgument{"[]string", []string{"a"}}},
		{map[label]status{"a": 1}, TaskArgument{"map[string]int8", map[string]int8{"a": 1}}},
		{nil, TaskArgument{"json", nil}},
		{json.RawMessage("1"), TaskArgument{"json", json.RawMessage("1")}},
		{order{1}, TaskArgument{"json", order{1}}},
		{(chan int)(nil), TaskArgument{"", (chan int)(nil)}},
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

// The tests of package wire cover which values are refused. This test covers the root's error for them.
func TestEncodeNamesTheArgumentItRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		bad  TaskArgument
		want ArgumentError
	}{
		{TaskArgument{"int8", 300}, ArgumentError{"n", 1, "int8", "300"}},
		{TaskArgument{"int128", 5}, ArgumentError{"n", 1, "a known type", `type "int128" of a Go value of type int`}},
		{TaskArgument{"string", "\xff"}, ArgumentError{"n", 1, "string", "text that is not valid UTF-8"}},
		{Args(make(chan int))[0], ArgumentError{"n", 1, "a known type", `type "" of a Go value of type chan int`}},
	} {
		body, err := encodeTask(&Task{Name: "n", Args: []TaskArgument{{"int", 1}, c.bad}})
		if bad, ok := errors.AsType[*ArgumentError](err); !ok || *bad != c.want || body != nil {
			t.Errorf("%v: got %s, %v, want %v", c.bad, body, err, &c.want)
		}
	}
	for _, task := range []*Task{{Name: "\xff"}, {Name: "n", UUID: "\xff"}} {
		if body, err := encodeTask(task); !errors.As(err, new(*ArgumentError)) || body != nil {
			t.Errorf("%+v: %s, %v", task, body, err)
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

func TestUUIDsAreOfVersion4(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for range 1000 {
		s := newUUID()
		id, err := uuid.Parse(s)
		if err != nil || id.String() != s || id.Version() != 4 || id.Variant() != uuid.RFC4122 || seen[s] {
			t.Fatalf("%q: version %d, variant %v, seen before: %t, %v", s, id.Version(), id.Variant(), seen[s], err)
		}
		seen[s] = true
	}
}
