package dispatcher

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/parser"
	"go/token"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/text"
	"github.com/seed-416683c9/dispatcher/internal/wire"
)

var updateWire = flag.Bool("update-wire", false, "write the golden files of testdata/wire; a change in them breaks running workers")

// golden are tasks whose bytes on the wire may never change. want are the arguments as a func(...any) receives them.
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
			if ancestor, err := json.Marshal(g.task); err != nil || string(ancestor) != string(file) {
				t.Errorf("json.Marshal, as gofort/dispatcher did: %s, %v", ancestor, err)
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
	bound, err := plan.bind(task.Args)
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.call(t.Context(), "", bound); err != nil {
		t.Fatal(err)
	}
	return got
}

// equalValues is DeepEqual with times compared as instants with an offset.
func equalValues(a, b []any) bool {
	return slices.EqualFunc(a, b, func(a, b any) bool {
		ta, isTime := a.(time.Time)
		if tb, ok := b.(time.Time); ok && isTime {
			return ta.Format(time.RFC3339Nano) == tb.Format(time.RFC3339Nano)
		}
		return reflect.DeepEqual(a, b)
	})
}

func TestEncodeAcceptsOtherGoTypesWhoseValueIsOfTheDeclaredType(t *testing.T) {
	t.Parallel()
	mean := time.Date(1900, 1, 1, 12, 0, 0, 0, time.FixedZone("LMT", 1172))
	for _, c := range []struct {
		arg  TaskArgument
		want any
	}{
		{TaskArgument{"int64", 5}, int64(5)},
		{TaskArgument{"float64", 3}, 3.0},
		{TaskArgument{"float32", 0.1}, float32(0.1)},
		{TaskArgument{"uint8", int(200)}, uint8(200)},
		{TaskArgument{"int", 3.0}, 3},
		{TaskArgument{"int64", float64(1 << 53)}, int64(1 << 53)},
		{TaskArgument{"uint8", math.Copysign(0, -1)}, uint8(0)},
		{TaskArgument{"float64", int64(1 << 60)}, float64(1 << 60)},
		{TaskArgument{"int64", json.Number("9007199254740993")}, int64(9007199254740993)},
		{TaskArgument{"int64", json.RawMessage(" 12e2 ")}, int64(1200)},
		{TaskArgument{"string", json.RawMessage(`"\u00e9"`)}, "é"},
		{TaskArgument{"int32", time.March}, int32(3)},
		{TaskArgument{"[]int8", []any{1, 2.0}}, []int8{1, 2}},
		{TaskArgument{"[]uint8", [2]byte{1, 255}}, []uint8{1, 255}},
		{TaskArgument{"map[string]uint8", map[string]any{"a": 1}}, map[string]uint8{"a": 1}},
		{TaskArgument{"map[string]int", map[int]int{7: 1}}, map[string]int{"7": 1}},
		{TaskArgument{"[]byte", "AAE="}, []byte{0, 1}},
		{TaskArgument{"[]byte", nil}, []byte(nil)},
		{TaskArgument{"[]string", nil}, []string(nil)},
		{TaskArgument{"time.Duration", 5}, time.Duration(5)},
		{TaskArgument{"json", []byte{0, 1}}, "AAE="},
		{TaskArgument{"json", map[string]any{"r": json.RawMessage(`"\ufffd"`)}}, map[string]any{"r": "\uFFFD"}},
		{TaskArgument{"json", map[string]any{"\uFFFD": []any{json.RawMessage(`"\ufffd"`), "\uFFFD"}}}, map[string]any{"\uFFFD": []any{"\uFFFD", "\uFFFD"}}},
		{TaskArgument{"json", map[int]any{1: json.RawMessage(`"\ufffd"`)}}, map[string]any{"1": "\uFFFD"}},
		{TaskArgument{"json", selfEmbedded("fine", "\xff")}, map[string]any{"Text": "fine", "Raw": "\uFFFD"}},
		{TaskArgument{"json", hiddenRing("\xff")}, map[string]any{"Raw": "\uFFFD"}},
		{TaskArgument{"json", struct{ P *byPointer }{&byPointer{}}}, map[string]any{"P": "\uFFFD"}},
		{TaskArgument{"json", []any{seconds{mean}, "1900-01-01T12:00:00+00:19"}}, []any{"-2208946772 00:00+00:19", "1900-01-01T12:00:00+00:19"}},
		{TaskArgument{"json", []time.Time{mean.In(time.FixedZone("", 1140))}}, []any{"1900-01-01T11:59:28+00:19"}},
		{TaskArgument{"json", struct {
			Never time.Time `json:"-"`
			Text  string
		}{mean, "1900-01-01T12:00:00+00:19"}}, map[string]any{"Text": "1900-01-01T12:00:00+00:19"}},
		{TaskArgument{"float64", json.RawMessage("123456789012345680000")}, 123456789012345680000.0},
		{TaskArgument{"[]float64", []any{123456789012345678901.0, math.Copysign(0, -1), 9007199254740992}}, []float64{123456789012345678901.0, 0, 9007199254740992}},
		{TaskArgument{"json", struct {
			Never string `json:"-"`
			Raw   json.RawMessage
		}{"\xff", json.RawMessage(`"\ufffd"`)}}, map[string]any{"Raw": "\uFFFD"}},
	} {
		body, err := encodeTask(&Task{Name: "n", Args: []TaskArgument{c.arg}})
		if err != nil {
			t.Errorf("%#v: %v", c.arg, err)
			continue
		}
		if got := receive(t, body); !reflect.DeepEqual(got[0], c.want) {
			t.Errorf("%#v arrived as %#v, want %#v", c.arg, got[0], c.want)
		}
	}
}

// selfEmbedding has a pointer to its own type in it, whose fields encoding/json does not follow.
type selfEmbedding struct {
	*selfEmbedding
	Text string
	Raw  json.RawMessage
}

// selfEmbedded ends in a ring, with other text there that nobody writes.
func selfEmbedded(text, hidden string) *selfEmbedding {
	ring := &selfEmbedding{Text: hidden}
	ring.selfEmbedding = ring
	return &selfEmbedding{selfEmbedding: ring, Text: text, Raw: json.RawMessage(`"\ufffd"`)}
}

// hiddenRing has two fields of one JSON name, which encoding/json leaves out, and in them a value that contains itself.
func hiddenRing(text string) any {
	type node struct {
		Text string
		Next *node
	}
	ring := &node{Text: text}
	ring.Next = ring
	field := func(name string, v any, tag reflect.StructTag) reflect.StructField {
		return reflect.StructField{Name: name, Type: reflect.TypeOf(v), Tag: tag}
	}
	raw := json.RawMessage(`"\ufffd"`)
	v := reflect.New(reflect.StructOf([]reflect.StructField{field("A", ring, `json:"n"`), field("B", ring, `json:"n"`), field("Raw", raw, "")})).Elem()
	for i, value := range []any{ring, ring, raw} {
		v.Field(i).Set(reflect.ValueOf(value))
	}
	return v.Interface()
}

type inner struct{ Text string }

// byPointer is written by a method that only its pointer has.
type byPointer struct{ Text string }

func (*byPointer) MarshalJSON() ([]byte, error) { return []byte(`"\ufffd"`), nil }

type panicking struct{}

func (panicking) MarshalJSON() ([]byte, error) { panic("boom") }
func (*panicking) UnmarshalJSON([]byte) error  { panic("boom") }

// stamp is written by the MarshalJSON of its time.
type stamp struct {
	time.Time
	N int
}

// seconds writes its time so that nothing is lost.
type seconds struct{ time.Time }

func (s seconds) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `"%d 00:00+00:19"`, s.Unix()), nil // looks like one that is
}

func TestEncodeRefusesWhatTheWorkerCouldNotReadAsGiven(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", 9_998) + strings.Repeat("]", 9_998)
	mean := time.Date(1900, 1, 1, 12, 0, 0, 0, time.FixedZone("LMT", 1172)) // Amsterdam
	ring := map[string]any{}
	ring["self"] = ring
	for _, c := range []struct {
		name string
		arg  TaskArgument
		got  string // part of Got
	}{
		{"overflow", TaskArgument{"int8", 300}, "300"},
		{"negative uint", TaskArgument{"uint64", -1}, "-1"},
		{"fraction", TaskArgument{"int", 1.5}, "1.5"},
		{"text as int", TaskArgument{"int", "x"}, `"x"`},
		{"int as text", TaskArgument{"string", 5}, "5"},
		{"null scalar", TaskArgument{"string", nil}, "null"},
		{"int that a float64 cannot hold", TaskArgument{"float64", int64(9007199254740993)}, "9007199254740993"},
		{"int that a float32 cannot hold", TaskArgument{"float32", 16777217}, "16777217"},
		{"ints that floats cannot hold", TaskArgument{"[]float64", []int64{1, 9007199254740993}}, "at [1]"},
		{"float beyond 2^53 as int", TaskArgument{"int64", float64(1 << 60)}, "115292150460684"},
		{"float overflow", TaskArgument{"float32", 1e300}, "1e+300"},
		{"NaN", TaskArgument{"float64", math.NaN()}, "NaN"},
		{"Inf", TaskArgument{"float32", float32(math.Inf(1))}, "+Inf"},
		{"NaN in a slice", TaskArgument{"[]float64", []float64{math.NaN()}}, "NaN"},
		{"bytes as string", TaskArgument{"string", []byte("x")}, "its type is []byte"},
		{"byte slices as strings", TaskArgument{"[]string", [][]byte{[]byte("x")}}, "its type is []byte"},
		{"bytes as an array", TaskArgument{"[]uint8", []byte("x")}, "its type is []byte"},
		{"not base64", TaskArgument{"[]byte", "?"}, `"?"`},
		{"slice element", TaskArgument{"[]int8", []int{1, 300}}, "300 at [1]"},
		{"map element", TaskArgument{"map[string]int8", map[string]int{"k": 300}}, `300 at ["k"]`},
		{"map key twice", TaskArgument{"map[string]int8", json.RawMessage(`{"k":1,"\u006b":2}`)}, "twice"},
		{"invalid UTF-8", TaskArgument{"string", "a\xff"}, "UTF-8"},
		{"invalid UTF-8 in a slice", TaskArgument{"[]string", []string{"a\xff"}}, "UTF-8"},
		{"invalid UTF-8 in a map", TaskArgument{"map[string]string", map[string]string{"a": "\xff"}}, "UTF-8"},
		{"invalid UTF-8 in a key", TaskArgument{"map[string]int", map[string]int{"\xff": 1}}, "UTF-8"},
		{"invalid UTF-8 in a struct", TaskArgument{"json", struct{ P *[]any }{&[]any{"\xff"}}}, "UTF-8"},
		{"invalid UTF-8 beside an embedded ring", TaskArgument{"json", selfEmbedded("\xff", "fine")}, "UTF-8"},
		{"invalid UTF-8 in a promoted field", TaskArgument{"json", struct{ *inner }{&inner{"\xff"}}}, "UTF-8"},
		{"invalid UTF-8 in a field with a tag", TaskArgument{"json", struct {
			T string `json:"other,omitempty"`
		}{"\xff"}}, "UTF-8"},
		{"invalid UTF-8 in a quoted field", TaskArgument{"json", struct {
			T string `json:",string"`
		}{"\xff"}}, "UTF-8"},
		{"invalid UTF-8 below a number", TaskArgument{"json", map[int][]string{1: {"fine", "\xff"}}}, "UTF-8"},
		{"invalid UTF-8 in a named key", TaskArgument{"json", map[namedText]any{"a": map[namedText]int{"\xff": 1}}}, "UTF-8"},
		{"invalid UTF-8 beside raw json", TaskArgument{"json", []any{json.RawMessage(`"\ufffd"`), struct{ P *[]any }{&[]any{"\xff"}}}}, "UTF-8"},
		{"invalid UTF-8 in raw json", TaskArgument{"json", json.RawMessage("\"\xff\"")}, "UTF-8"},
		{"half a surrogate pair", TaskArgument{"json", json.RawMessage(`"\ud83d"`)}, "UTF-8"},
		{"raw json that is none", TaskArgument{"json", json.RawMessage(`{`)}, "json"},
		{"two raw json values", TaskArgument{"json", json.RawMessage(`1 2`)}, "json"},
		{"chan in a struct", TaskArgument{"json", struct{ C chan int }{}}, "chan int"},
		{"ring", TaskArgument{"json", ring}, "cycle"},
		{"too deep for the worker", TaskArgument{"json", json.RawMessage(deep)}, "too deep"},
		{"panicking MarshalJSON", TaskArgument{"json", panicking{}}, "boom"},
		{"panicking MarshalJSON in a slice", TaskArgument{"json", []any{panicking{}}}, "boom"},
		{"year 10000", TaskArgument{"time.Time", time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}, "year"},
		{"zone with seconds", TaskArgument{"time.Time", mean}, "use UTC"},
		{"zone with seconds in a slice", TaskArgument{"json", []time.Time{time.Now().UTC(), mean}}, "use UTC"},
		{"zone with seconds in an array", TaskArgument{"json", [1]time.Time{mean}}, "use UTC"},
		{"zone with seconds behind a pointer", TaskArgument{"json", &mean}, "use UTC"},
		{"zone with seconds behind pointers", TaskArgument{"json", []any{new(new(mean))}}, "use UTC"},
		{"zone with seconds in a map", TaskArgument{"json", map[string]any{"a": 1, "b": mean}}, "use UTC"},
		{"zone with seconds below a number", TaskArgument{"json", map[int]time.Time{1: mean}}, "use UTC"},
		{"zone with seconds in a key", TaskArgument{"json", map[time.Time]int{mean: 1}}, "use UTC"},
		{"zone with seconds in a struct", TaskArgument{"json", struct {
			At *time.Time `json:"at"`
		}{&mean}}, "use UTC"},
		{"zone with seconds in an embedded time", TaskArgument{"json", stamp{mean, 1}}, "use UTC"},
		{"zone with seconds in a pointer to an embedded time", TaskArgument{"json", []any{&stamp{mean, 1}}}, "use UTC"},
		{"negative zone with seconds", TaskArgument{"json", []time.Time{time.Now().In(time.FixedZone("LMT", -17762))}}, "use UTC"},
		{"int in any that a float64 cannot hold", TaskArgument{"[]float64", []any{1.5, int64(9007199254740993)}}, "at [1]"},
		{"number that a float64 cannot hold", TaskArgument{"float64", json.Number("9007199254740993")}, "9007199254740993"},
		{"not a time", TaskArgument{"time.Time", "2026-08-01 12:00"}, `"2026-08-01 12:00"`},
		{"unknown type", TaskArgument{"int128", 5}, `"int128"`},
		{"type of any Go type", TaskArgument{"interface {}", 5}, `"interface {}"`},
		{"no type", TaskArgument{"", 5}, "type int"},
		{"no type from Args", Args(make(chan int))[0], "chan int"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			body, err := encodeTask(&Task{Name: "n", Args: []TaskArgument{{"int", 1}, c.arg}})
			bad, ok := errors.AsType[*ArgumentError](err)
			if !ok || body != nil {
				t.Fatalf("got %s, %v", body, err)
			}
			if bad.Task != "n" || bad.Position != 1 || bad.Want == "" || !strings.Contains(bad.Got, c.got) || len(bad.Got) > 200 {
				t.Errorf("got %+v, want Got with %q", bad, c.got)
			}
		})
	}
	for _, task := range []*Task{{Name: "\xff"}, {Name: "n", UUID: "\xff"}} {
		if _, err := encodeTask(task); !errors.As(err, new(*ArgumentError)) {
			t.Errorf("%+v: %v", task, err)
		}
	}
}

func TestDecodeRefusesHostileBodies(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat(`[`, 200_000)
	for _, c := range []struct{ body, want string }{
		{"", "empty"},
		{" ", "unexpected end"},
		{"\x00", "byte 1"},
		{"\xef\xbb\xbf{}", "byte 1"},
		{"{", "unexpected end"},
		{`{"name":"n"} {}`, "after top-level value at byte 14"},
		{`{"name":"n"}x`, "after top-level value"},
		{`{"name":"n",}`, "byte 13"},
		{`{'name':'n'}`, "byte 2"},
		{`{"name":NaN}`, "byte 9"},
		{`{"name":"n","args":[{"type":"int","value":01}]}`, "byte"},
		{"null", "want an object, got null"},
		{"true", "want an object, got a bool"},
		{`"task"`, "want an object, got a string"},
		{"42", "want an object, got a number"},
		{`[{"name":"n"}]`, "want an object, got an array"},
		{"{\"name\":\"\xff\"}", "byte 9"},
		{"{\"name\":\"n\",\"x\xc3\":1}", "byte 14"},
		{`{"name":"\ud800"}`, "byte 9"},
		{`{"name":"\udc00\ud800"}`, "byte 9"},
		{`{"name":"n","x":"\\\ud800\u0041"}`, "byte 19"},
		{`{}`, "name is missing"},
		{`{"NAME":"n"}`, "name is missing"},
		{`{"name":""}`, "name is empty"},
		{`{"name":null}`, "name: want a string, got null"},
		{`{"name":5}`, "name: want a string, got a number"},
		{`{"name":["n"]}`, "name: want a string, got an array"},
		{`{"name":"n","uuid":5}`, "uuid: want a string, got a number"},
		{`{"name":"n","uuid":null}`, "uuid: want a string, got null"},
		{`{"name":"n","name":"m"}`, `duplicate key "name"`},
		{`{"name":"n","\u006eame":"m"}`, `duplicate key "name"`},
		{`{"uuid":"a","name":"n","uuid":"a"}`, `duplicate key "uuid"`},
		{`{"name":"n","args":null,"args":[]}`, `duplicate key "args"`},
		{`{"name":"n","x":1,"x":1}`, `duplicate key "x"`},
		{`{"name":"n","args":{}}`, "args: want an array, got an object"},
		{`{"name":"n","args":"[]"}`, "args: want an array, got a string"},
		{`{"name":"n","args":0}`, "args: want an array, got a number"},
		{`{"name":"n","args":[5]}`, "argument 0: want an object, got a number"},
		{`{"name":"n","args":[null]}`, "argument 0: want an object, got null"},
		{`{"name":"n","args":[{"type":"int","value":1},["int",1]]}`, "argument 1: want an object, got an array"},
		{`{"name":"n","args":[{}]}`, "argument 0: type is missing"},
		{`{"name":"n","args":[{"value":1}]}`, "argument 0: type is missing"},
		{`{"name":"n","args":[{"Type":"int","value":1}]}`, "argument 0: type is missing"},
		{`{"name":"n","args":[{"type":"int"}]}`, "argument 0: value is missing"},
		{`{"name":"n","args":[{"type":"int","Value":1}]}`, "argument 0: value is missing"},
		{`{"name":"n","args":[{"type":1,"value":1}]}`, "argument 0: type: want a string, got a number"},
		{`{"name":"n","args":[{"type":"int","value":1,"value":2}]}`, `argument 0: duplicate key "value"`},
		{`{"name":"n","args":[{"type":"int","type":"int","value":1}]}`, `argument 0: duplicate key "type"`},
		{`{"name":"n","args":[{"type":"int","value":1,"":1,"":2}]}`, `argument 0: duplicate key ""`},
		{deep, "depth"},
		{`{"name":"n","args":` + deep, "depth"},
		{`{"name":"n","args":[{"type":"json","value":` + strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000) + "}]}", "depth"},
	} {
		_, err := wire.Decode([]byte(c.body))
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", text.Excerpt(c.body), err)
		} else if said := err.Error(); !strings.Contains(said, c.want) || len(said) > 200 {
			t.Errorf("%s: %q, want %q", text.Excerpt(c.body), said, c.want)
		}
	}
}

func TestDecodeTakesWhatOtherSendersWrite(t *testing.T) {
	t.Parallel()
	arg := wire.Value{Type: "int", Value: json.RawMessage("1")}
	for _, c := range []struct {
		body string
		want wire.Task
	}{
		{`{"name":"n"}`, wire.Task{Name: "n"}},
		{`{"name":"n","uuid":"","args":null}`, wire.Task{Name: "n"}},
		{`{"name":"n","args":[]}`, wire.Task{Name: "n"}},
		{"\r\n\t {\"args\" : [ { \"value\" :\t1 , \"type\" : \"int\" } ] , \"name\":\"n\" }\n ", wire.Task{Name: "n", Args: []wire.Value{arg}}},
		{`{"NAME":"x","Uuid":5,"uuid":"u","name":"n","version":2,"meta":{"name":"m","a":[1,{"}":"]"}]}}`, wire.Task{UUID: "u", Name: "n"}},
		{`{"name":"\u006e\ud83d\ude42","args":[{"type":"int","value":1,"Value":2,"note":"\\"}]}`, wire.Task{Name: "n🙂", Args: []wire.Value{arg}}},
		{`{"name":"n","args":[{"type":"","value":null},{"type":"no such","value":{"a":[1, "]}\""]}}]}`,
			wire.Task{Name: "n", Args: []wire.Value{{Type: "", Value: json.RawMessage("null")}, {Type: "no such", Value: json.RawMessage(`{"a":[1, "]}\""]}`)}}}},
	} {
		got, err := wire.Decode([]byte(c.body))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\ngot  %+v, %v\nwant %+v", c.body, got, err, c.want)
		}
	}
}

func TestDecodeTakesAsManyArgumentsAsABodyHolds(t *testing.T) {
	t.Parallel()
	const n = 40_000 // about 1 MiB
	body := `{"name":"n","args":[{"type":"int","value":0}` + strings.Repeat(`,{"type":"int","value":7}`, n-1) + `]}`
	task, err := wire.Decode([]byte(body))
	if err != nil || len(task.Args) != n {
		t.Fatalf("%d arguments, %v", len(task.Args), err)
	}
}

func TestReflectStaysInItsFiles(t *testing.T) {
	t.Parallel()
	allowed := []string{"reflect_args.go", "internal/wire/bind.go", "internal/wire/infer.go", "internal/wire/exact.go"}
	root, err := filepath.Glob("*.go")
	rooms, err2 := filepath.Glob("internal/*/*.go")
	if err != nil || err2 != nil || len(rooms) == 0 {
		t.Fatal(err, err2)
	}
	for _, file := range append(root, rooms...) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			if path, _ := strconv.Unquote(imp.Path.Value); path == "reflect" && !slices.Contains(allowed, filepath.ToSlash(file)) {
				t.Errorf("%s imports reflect: everything that needs it belongs into one of %q", file, allowed)
			}
		}
	}
}
