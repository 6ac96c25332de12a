package wire

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

// travel takes an argument over the wire, in the body of a task.
func travel(t *testing.T, arg Argument) (Value, *Mismatch) {
	t.Helper()
	body, bad := AppendArgument([]byte(`{"name":"n","args":[`), arg)
	if bad != nil {
		return Value{}, bad
	}
	body = append(body, "]}"...)
	task, err := Decode(body)
	if err != nil || len(task.Args) != 1 {
		t.Fatalf("%#v was encoded as %s: %v", arg, body, err)
	}
	return task.Args[0], nil
}

// acceptCase is an argument, and the value that a parameter of type any receives.
type acceptCase struct {
	arg  Argument
	want any
}

func checkAccepted(t *testing.T, cases []acceptCase) {
	t.Helper()
	for _, c := range cases {
		sent, bad := travel(t, c.arg)
		if bad != nil {
			t.Errorf("%#v: %+v", c.arg, bad)
			continue
		}
		if got, bad := fill[any](sent.Type, string(sent.Value)); bad != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%#v arrived as %#v, %+v, want %#v", c.arg, got, bad, c.want)
		}
	}
}

// refuseCase is an argument that must not be published.
type refuseCase struct {
	name string
	arg  Argument
	got  string // part of the mismatch's Got
}

func checkRefused(t *testing.T, cases []refuseCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			sent, bad := travel(t, c.arg)
			if bad == nil {
				t.Fatalf("encoded as %s %s", sent.Type, sent.Value)
			}
			if bad.Want == "" || !strings.Contains(bad.Got, c.got) || len(bad.Got) > 200 {
				t.Errorf("got %+v, want Got with %q", bad, c.got)
			}
		})
	}
}

type panicking struct{}

func (panicking) MarshalJSON() ([]byte, error) { panic("boom") }
func (*panicking) UnmarshalJSON([]byte) error  { panic("boom") }

func TestEncodeAcceptsOtherGoTypesWhoseValueIsOfTheDeclaredType(t *testing.T) {
	t.Parallel()
	checkAccepted(t, []acceptCase{
		{Argument{"int64", 5}, int64(5)},
		{Argument{"float64", 3}, 3.0},
		{Argument{"float32", 0.1}, float32(0.1)},
		{Argument{"uint8", int(200)}, uint8(200)},
		{Argument{"int", 3.0}, 3},
		{Argument{"int64", float64(1 << 53)}, int64(1 << 53)},
		{Argument{"uint8", math.Copysign(0, -1)}, uint8(0)},
		{Argument{"float64", int64(1 << 60)}, float64(1 << 60)},
		{Argument{"int64", json.Number("9007199254740993")}, int64(9007199254740993)},
		{Argument{"int64", json.RawMessage(" 12e2 ")}, int64(1200)},
		{Argument{"string", json.RawMessage(`"\u00e9"`)}, "é"},
		{Argument{"int32", time.March}, int32(3)},
		{Argument{"[]int8", []any{1, 2.0}}, []int8{1, 2}},
		{Argument{"[]uint8", [2]byte{1, 255}}, []uint8{1, 255}},
		{Argument{"map[string]uint8", map[string]any{"a": 1}}, map[string]uint8{"a": 1}},
		{Argument{"map[string]int", map[int]int{7: 1}}, map[string]int{"7": 1}},
		{Argument{"[]byte", "AAE="}, []byte{0, 1}},
		{Argument{"[]byte", nil}, []byte(nil)},
		{Argument{"[]string", nil}, []string(nil)},
		{Argument{"time.Duration", 5}, time.Duration(5)},
		{Argument{"json", []byte{0, 1}}, "AAE="},
		{Argument{"float64", json.RawMessage("123456789012345680000")}, 123456789012345680000.0},
		{Argument{"[]float64", []any{123456789012345678901.0, math.Copysign(0, -1), 9007199254740992}}, []float64{123456789012345678901.0, 0, 9007199254740992}},
	})
}

func TestEncodeRefusesWhatTheWorkerCouldNotReadAsGiven(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", 9_998) + strings.Repeat("]", 9_998)
	ring := map[string]any{}
	ring["self"] = ring
	checkRefused(t, []refuseCase{
		{"overflow", Argument{"int8", 300}, "300"},
		{"negative uint", Argument{"uint64", -1}, "-1"},
		{"fraction", Argument{"int", 1.5}, "1.5"},
		{"text as int", Argument{"int", "x"}, `"x"`},
		{"int as text", Argument{"string", 5}, "5"},
		{"null scalar", Argument{"string", nil}, "null"},
		{"int that a float64 cannot hold", Argument{"float64", int64(9007199254740993)}, "9007199254740993"},
		{"int that a float32 cannot hold", Argument{"float32", 16777217}, "16777217"},
		{"ints that floats cannot hold", Argument{"[]float64", []int64{1, 9007199254740993}}, "at [1]"},
		{"float beyond 2^53 as int", Argument{"int64", float64(1 << 60)}, "115292150460684"},
		{"float overflow", Argument{"float32", 1e300}, "1e+300"},
		{"NaN", Argument{"float64", math.NaN()}, "NaN"},
		{"Inf", Argument{"float32", float32(math.Inf(1))}, "+Inf"},
		{"NaN in a slice", Argument{"[]float64", []float64{math.NaN()}}, "NaN"},
		{"bytes as string", Argument{"string", []byte("x")}, "its type is []byte"},
		{"byte slices as strings", Argument{"[]string", [][]byte{[]byte("x")}}, "its type is []byte"},
		{"bytes as an array", Argument{"[]uint8", []byte("x")}, "its type is []byte"},
		{"not base64", Argument{"[]byte", "?"}, `"?"`},
		{"slice element", Argument{"[]int8", []int{1, 300}}, "300 at [1]"},
		{"map element", Argument{"map[string]int8", map[string]int{"k": 300}}, `300 at ["k"]`},
		{"map key twice", Argument{"map[string]int8", json.RawMessage(`{"k":1,"\u006b":2}`)}, "duplicate key"},
		{"raw json that is none", Argument{"json", json.RawMessage(`{`)}, "json"},
		{"two raw json values", Argument{"json", json.RawMessage(`1 2`)}, "json"},
		{"chan in a struct", Argument{"json", struct{ C chan int }{}}, "chan int"},
		{"ring", Argument{"json", ring}, "cycle"},
		{"too deep for the worker", Argument{"json", json.RawMessage(deep)}, "too deep"},
		{"panicking MarshalJSON", Argument{"json", panicking{}}, "boom"},
		{"panicking MarshalJSON in a slice", Argument{"json", []any{panicking{}}}, "boom"},
		{"year 10000", Argument{"time.Time", time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}, "year"},
		{"int in any that a float64 cannot hold", Argument{"[]float64", []any{1.5, int64(9007199254740993)}}, "at [1]"},
		{"number that a float64 cannot hold", Argument{"float64", json.Number("9007199254740993")}, "9007199254740993"},
		{"not a time", Argument{"time.Time", "2026-08-01 12:00"}, `"2026-08-01 12:00"`},
		{"unknown type", Argument{"int128", 5}, `"int128"`},
		{"type of any Go type", Argument{"interface {}", 5}, `"interface {}"`},
		{"no type", Argument{"", 5}, "type int"},
		{"no type from Infer", Infer(make(chan int)), "chan int"},
	})
}

// A signature covers bytes, so they must arrive unchanged.
func TestARawMessageKeepsItsBytes(t *testing.T) {
	t.Parallel()
	const signed = "{ \"b\": \"<&>\\u0061\u2028\",\n\t\"a\" : [1.0, 1e2,{}]}"
	for _, raw := range []string{signed, " \r\n\t" + signed + "\n", "1.50", `"<"`, "null"} {
		sent, bad := travel(t, Argument{"json", json.RawMessage(raw)})
		if bad != nil {
			t.Fatalf("%q: %+v", raw, bad)
		}
		got, bad := fill[json.RawMessage](sent.Type, string(sent.Value))
		if want := string(trimSpace([]byte(raw))); bad != nil || string(got) != want {
			t.Errorf("%q arrived as %q, %+v", want, got, bad)
		}
	}
}
