package wire

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
	"time"
)

// mean is a local mean time: until 1937, Amsterdam was 19 minutes and 32 seconds ahead of UTC. RFC 3339 has no seconds
// in an offset.
var mean = time.Date(1900, 1, 1, 12, 0, 0, 0, time.FixedZone("LMT", 1172))

// selfEmbedding embeds a pointer to its own type. encoding/json ignores the fields behind that pointer.
type selfEmbedding struct {
	*selfEmbedding
	Text string
	Raw  json.RawMessage
}

// selfEmbedded returns a value that embeds a ring. encoding/json writes text, but not the text hidden in the ring.
func selfEmbedded(text, hidden string) *selfEmbedding {
	ring := &selfEmbedding{Text: hidden}
	ring.selfEmbedding = ring
	return &selfEmbedding{selfEmbedding: ring, Text: text, Raw: json.RawMessage(`"\ufffd"`)}
}

// hiddenRing returns a struct with two fields of the same JSON name, which encoding/json leaves out. The value in them
// contains itself.
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

// byPointer has a MarshalJSON that only its pointer has.
type byPointer struct{ Text string }

func (*byPointer) MarshalJSON() ([]byte, error) { return []byte(`"\ufffd"`), nil }

// ownText is a string with a MarshalJSON of its own.
type ownText string

func (ownText) MarshalJSON() ([]byte, error) { return []byte(`"\ufffd"`), nil }

// stamp has the MarshalJSON of the time that it embeds.
type stamp struct {
	time.Time
	N int
}

// seconds has a MarshalJSON of its own, which loses nothing.
type seconds struct{ time.Time }

func (s seconds) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `"%d 00:00+00:19"`, s.Unix()), nil // looks like an offset without its seconds
}

// triangle has an UnmarshalJSON of its own, which may treat the elements as it likes.
type triangle [3]int

func (*triangle) UnmarshalJSON([]byte) error { return nil }

func TestTextAndTimesThatTravelUnchangedAreAccepted(t *testing.T) {
	t.Parallel()
	checkAccepted(t, []acceptCase{
		{Argument{"json", map[string]any{"r": json.RawMessage(`"\ufffd"`)}}, map[string]any{"r": "\uFFFD"}},
		{Argument{"json", map[string]any{"\uFFFD": []any{json.RawMessage(`"\ufffd"`), "\uFFFD"}}}, map[string]any{"\uFFFD": []any{"\uFFFD", "\uFFFD"}}},
		{Argument{"json", map[int]any{1: json.RawMessage(`"\ufffd"`)}}, map[string]any{"1": "\uFFFD"}},
		{Argument{"json", selfEmbedded("fine", "\xff")}, map[string]any{"Text": "fine", "Raw": "\uFFFD"}},
		{Argument{"json", hiddenRing("\xff")}, map[string]any{"Raw": "\uFFFD"}},
		{Argument{"json", []ownText{"\xff"}}, []any{"\uFFFD"}},
		{Argument{"json", struct{ P *byPointer }{&byPointer{}}}, map[string]any{"P": "\uFFFD"}},
		{Argument{"json", []any{seconds{mean}, "1900-01-01T12:00:00+00:19"}}, []any{"-2208946772 00:00+00:19", "1900-01-01T12:00:00+00:19"}},
		{Argument{"json", []time.Time{mean.In(time.FixedZone("", 1140))}}, []any{"1900-01-01T11:59:28+00:19"}},
		{Argument{"json", struct {
			Never time.Time `json:"-"`
			Text  string
		}{mean, "1900-01-01T12:00:00+00:19"}}, map[string]any{"Text": "1900-01-01T12:00:00+00:19"}},
		{Argument{"json", struct {
			Never string `json:"-"`
			Raw   json.RawMessage
		}{"\xff", json.RawMessage(`"\ufffd"`)}}, map[string]any{"Raw": "\uFFFD"}},
	})
}

func TestTextAndTimesThatWouldChangeAreRefused(t *testing.T) {
	t.Parallel()
	checkRefused(t, []refuseCase{
		{"invalid UTF-8", Argument{"string", "a\xff"}, "UTF-8"},
		{"invalid UTF-8 in a slice", Argument{"[]string", []string{"a\xff"}}, "UTF-8"},
		{"invalid UTF-8 in a map", Argument{"map[string]string", map[string]string{"a": "\xff"}}, "UTF-8"},
		{"invalid UTF-8 in a key", Argument{"map[string]int", map[string]int{"\xff": 1}}, "UTF-8"},
		{"invalid UTF-8 in a struct", Argument{"json", struct{ P *[]any }{&[]any{"\xff"}}}, "UTF-8"},
		{"invalid UTF-8 beside an embedded ring", Argument{"json", selfEmbedded("\xff", "fine")}, "UTF-8"},
		{"invalid UTF-8 in a promoted field", Argument{"json", struct{ *inner }{&inner{"\xff"}}}, "UTF-8"},
		{"invalid UTF-8 in a field with a tag", Argument{"json", struct {
			T string `json:"other,omitempty"`
		}{"\xff"}}, "UTF-8"},
		{"invalid UTF-8 in a quoted field", Argument{"json", struct {
			T string `json:",string"`
		}{"\xff"}}, "UTF-8"},
		{"invalid UTF-8 below a number", Argument{"json", map[int][]string{1: {"fine", "\xff"}}}, "UTF-8"},
		{"invalid UTF-8 in a named key", Argument{"json", map[namedText]any{"a": map[namedText]int{"\xff": 1}}}, "UTF-8"},
		{"invalid UTF-8 beside raw json", Argument{"json", []any{json.RawMessage(`"\ufffd"`), struct{ P *[]any }{&[]any{"\xff"}}}}, "UTF-8"},
		{"invalid UTF-8 in raw json", Argument{"json", json.RawMessage("\"\xff\"")}, "UTF-8"},
		{"half a surrogate pair", Argument{"json", json.RawMessage(`"\ud83d"`)}, "UTF-8"},
		{"zone with seconds", Argument{"time.Time", mean}, "use UTC"},
		{"zone with seconds in a slice", Argument{"json", []time.Time{time.Now().UTC(), mean}}, "use UTC"},
		{"zone with seconds in an array", Argument{"json", [1]time.Time{mean}}, "use UTC"},
		{"zone with seconds behind a pointer", Argument{"json", &mean}, "use UTC"},
		{"zone with seconds behind pointers", Argument{"json", []any{new(new(mean))}}, "use UTC"},
		{"zone with seconds in a map", Argument{"json", map[string]any{"a": 1, "b": mean}}, "use UTC"},
		{"zone with seconds below a number", Argument{"json", map[int]time.Time{1: mean}}, "use UTC"},
		{"zone with seconds in a key", Argument{"json", map[time.Time]int{mean: 1}}, "use UTC"},
		{"zone with seconds in a struct", Argument{"json", struct {
			At *time.Time `json:"at"`
		}{&mean}}, "use UTC"},
		{"zone with seconds in an embedded time", Argument{"json", stamp{mean, 1}}, "use UTC"},
		{"zone with seconds in a pointer to an embedded time", Argument{"json", []any{&stamp{mean, 1}}}, "use UTC"},
		{"negative zone with seconds", Argument{"json", []time.Time{time.Now().In(time.FixedZone("LMT", -17762))}}, "use UTC"},
	})
}

func TestArraysAndFloatsHoldAllOfTheirJSONOrNone(t *testing.T) {
	t.Parallel()
	checkFills(t, []fillCase{
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
		{anyOf[triangle], "json", `[1,2,3,4]`, triangle{}, ""}, // has its own UnmarshalJSON
		{anyOf[struct{ F float64 }], "json", `{"F":9007199254740993}`, nil, "9007199254740993 in a float64"},
		{anyOf[struct{ F float64 }], "json", `{"F":9007199254740992}`, struct{ F float64 }{1 << 53}, ""},
		{anyOf[struct{ F []float64 }], "json", `{"F":[123456789012345680000,0.12345678901234567890]}`, struct{ F []float64 }{[]float64{123456789012345680000, 0.12345678901234567890}}, ""},
		{anyOf[[]float32], "json", `[16777217]`, nil, "16777217 in a float32"},
	})
}
