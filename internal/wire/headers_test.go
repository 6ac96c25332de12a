package wire

import (
	"errors"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/text"
)

type (
	namedText  string
	namedCount uint16
	namedTable map[namedText][]namedCount
	namedBytes []byte
)

func TestHeadersAreNormalised(t *testing.T) {
	t.Parallel()
	now := time.Now()
	second := time.Unix(now.Unix(), 0).UTC() // AMQP carries whole seconds
	long := strings.Repeat("n", 255)
	for name, c := range map[string]struct{ in, want any }{
		"string":        {"s", "s"},
		"empty":         {"", ""},
		"bool":          {true, true},
		"nil":           {nil, nil},
		"int":           {math.MinInt, int64(math.MinInt)},
		"int8":          {int8(-8), int64(-8)},
		"int16":         {int16(-16), int64(-16)},
		"int32":         {int32(-32), int64(-32)},
		"int64":         {int64(math.MaxInt64), int64(math.MaxInt64)},
		"uint":          {uint(1), int64(1)},
		"uint8":         {uint8(255), int64(255)},
		"uint16":        {uint16(16), int64(16)},
		"uint32":        {uint32(math.MaxUint32), int64(math.MaxUint32)},
		"uint64":        {uint64(math.MaxInt64), int64(math.MaxInt64)},
		"float32":       {float32(0.5), 0.5},
		"float64":       {math.MaxFloat64, math.MaxFloat64},
		"x-death":       {[]map[string]string{{"queue": "q"}}, []any{map[string]any{"queue": "q"}}},
		"bytes":         {[]byte{0, 1}, []byte{0, 1}},
		"named bytes":   {namedBytes{0, 1}, []byte{0, 1}},
		"time":          {now, second},
		"duration":      {time.Second, int64(time.Second)},
		"named":         {namedText("s"), "s"},
		"strings":       {[]string{"a"}, []any{"a"}},
		"no strings":    {[]string(nil), []any{}},
		"ints":          {map[string]int{"a": 1}, map[string]any{"a": int64(1)}},
		"named table":   {namedTable{"k": {1, 2}}, map[string]any{"k": []any{int64(1), int64(2)}}},
		"nested":        {[]any{nil, map[string]any{"t": []time.Time{now}}}, []any{nil, map[string]any{"t": []any{second}}}},
		"nested names":  {map[string]any{"CC": "x", "x-dispatcher-a": 1}, map[string]any{"CC": "x", "x-dispatcher-a": int64(1)}},
		"cc":            {"another case is another name", "another case is another name"},
		"x-dispatcher":  {1, int64(1)},
		long:            {1, int64(1)},
		"sixteen":       {nest(16), nest(16)},
		"empty strings": {map[string]string{}, map[string]any{}},
	} {
		got, err := Headers(map[string]any{name: c.in})
		if err != nil || !reflect.DeepEqual(got, map[string]any{name: c.want}) {
			t.Errorf("%s: got %#v, %v", name, got, err)
		}
	}
	if got, err := Headers(nil); got != nil || err != nil {
		t.Errorf("nil headers: %v, %v", got, err)
	}
}

// The limit counts the bytes on the wire. Otherwise many tiny values could take twice as much.
func TestHeadersAreCountedAsTheyTravel(t *testing.T) {
	t.Parallel()
	list := func(n int, v any) []any {
		l := make([]any, n)
		for i := range l {
			l[i] = v
		}
		return l
	}
	for name, c := range map[string]struct {
		v    any
		size int // on the wire
	}{
		"nil":     {nil, 1},
		"bool":    {true, 2},
		"int":     {1, 9},
		"float64": {1.5, 9},
		"time":    {time.Now(), 9},
		"string":  {"12345", 10},
		"bytes":   {[]byte("12345"), 10},
		"slice":   {[]any{}, 5},
		"map":     {map[string]any{"k": nil}, 8},
	} {
		// Each list has a name of two bytes and 7,000 elements. One string takes the bytes that are left.
		headers, left := map[string]any{}, maxHeaderBytes
		for i := 0; left > (3+5+7000*c.size)+9; i++ {
			headers[string(rune('a'+i))+"."] = list(7000, c.v)
			left -= 3 + 5 + 7000*c.size
		}
		headers["t"] = strings.Repeat("x", left-7)
		if _, err := Headers(headers); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		headers["t"] = strings.Repeat("x", left-6)
		if _, err := Headers(headers); !errors.Is(err, broker.ErrTooLarge) {
			t.Errorf("%s: one byte more: %v", name, err)
		}
	}
	if _, err := Headers(entries(8001)); !errors.Is(err, broker.ErrTooLarge) {
		t.Errorf("8,001 headers: %v", err)
	}
	if _, err := Headers(entries(8000)); err != nil {
		t.Errorf("8,000 headers: %v", err)
	}
}

func entries(n int) map[string]any {
	table := map[string]any{}
	for i := range n {
		table[strconv.FormatInt(int64(i), 36)] = nil
	}
	return table
}

func nest(depth int) any {
	var v any = "leaf"
	for range depth {
		v = []any{v}
	}
	return v
}

func TestHeadersAreADeepCopy(t *testing.T) {
	t.Parallel()
	bytes, list, table := []byte("a"), []any{"a"}, map[string]any{"k": "a"}
	named := namedBytes("a")
	in := map[string]any{"bytes": bytes, "list": list, "table": table, "named": named, "deep": []any{bytes}}
	got, err := Headers(in)
	if err != nil {
		t.Fatal(err)
	}
	bytes[0], list[0], table["k"], named[0] = 'b', "b", "b", 'b'
	in["more"] = 1
	want := map[string]any{"bytes": []byte("a"), "list": []any{"a"}, "table": map[string]any{"k": "a"}, "named": []byte("a"), "deep": []any{[]byte("a")}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %#v", got)
	}
}

func TestHeadersThatCannotTravelAreRefusedByName(t *testing.T) {
	t.Parallel()
	ring, two := map[string]any{}, map[string]any{}
	ring["two"] = []any{two}
	two["ring"] = ring
	list := make([]any, 1)
	list[0] = list
	type table map[string]table
	typed := table{}
	typed["self"] = typed
	for _, c := range []struct {
		name string
		v    any
		want string
	}{
		{"CC", []any{"q"}, "CC"},
		{"BCC", []any{"q"}, "BCC"},
		{"x-dispatcher-losses", 1, "x-dispatcher-losses"},
		{"X-Dispatcher-", 1, "X-Dispatcher-"},
		{"", 1, `""`},
		{strings.Repeat("n", 256), 1, "256 bytes"},
		{"h", uint64(math.MaxUint64), `"h"`},
		{"h", uint64(math.MaxInt64 + 1), "does not fit in an int64"},
		{"h", []uint64{1, math.MaxUint64}, "[1]"},
		{"h", make(chan int), "chan int"},
		{"h", struct{}{}, "struct {}"},
		{"h", new(int), "*int"},
		{"h", (*int)(nil), "*int"},
		{"h", 1i, "complex128"},
		{"h", uintptr(1), "uintptr"},
		{"h", [1]int{}, "[1]int"},
		{"h", map[int]string{}, "map[int]string"},
		{"h", map[string]any{"a": []any{nil, func() {}}}, `at ["a"]: at [1]: a value of type func()`},
		{"h", map[string]any{"": 1}, "name is empty"},
		{"h", []any{map[string]int{strings.Repeat("n", 256): 1}}, "256 bytes"},
		{"h", ring, "deeper than 16"},
		{"h", list, "deeper than 16"},
		{"h", typed, "deeper than 16"},
		{"h", nest(17), "deeper than 16"},
		{"h", math.NaN(), "NaN"},
		{"h", math.Inf(-1), "-Inf"},
		{"h", []float32{1, float32(math.Inf(1))}, "at [1]: +Inf"},
		{"h", make([]string, 8193), "8193 entries, the maximum is 8000"},
		{"h", []any{entries(8001)}, "8001 entries, the maximum is 8000"},
		{"x-death", "text", "x-death"},
		{"x-death", []any{map[string]any{}, "text"}, "x-death"},
	} {
		got, err := Headers(map[string]any{"fine": 1, c.name: c.v})
		if got != nil || err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), text.Excerpt(c.name)) || len(err.Error()) > 300 {
			t.Errorf("%s: got %v, %v; want %q", text.Excerpt(c.name), got, err, c.want)
		}
	}
}
