package wire

import (
	"encoding/json"
	"net"
	"reflect"
	"testing"
	"time"
	"unsafe"
)

func TestInferDeclaresEveryType(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, c := range []struct {
		in   any
		want Argument
	}{
		{true, Argument{"bool", true}},
		{"s", Argument{"string", "s"}},
		{1, Argument{"int", 1}},
		{int8(1), Argument{"int8", int8(1)}},
		{int16(1), Argument{"int16", int16(1)}},
		{int32(1), Argument{"int32", int32(1)}},
		{int64(1), Argument{"int64", int64(1)}},
		{uint(1), Argument{"uint", uint(1)}},
		{uint8(1), Argument{"uint8", uint8(1)}},
		{uint16(1), Argument{"uint16", uint16(1)}},
		{uint32(1), Argument{"uint32", uint32(1)}},
		{uint64(1), Argument{"uint64", uint64(1)}},
		{float32(1), Argument{"float32", float32(1)}},
		{1.0, Argument{"float64", 1.0}},
		{status(3), Argument{"int8", int8(3)}},
		{label("l"), Argument{"string", "l"}},
		{time.Second, Argument{"int64", int64(time.Second)}},
		{json.Number("5"), Argument{"string", "5"}},
		{[]byte{1}, Argument{"[]byte", []byte{1}}},
		{net.IP{1, 2}, Argument{"[]byte", []byte{1, 2}}},
		{[]byte(nil), Argument{"[]byte", []byte(nil)}},
		{[]string{"a"}, Argument{"[]string", []string{"a"}}},
		{labels{"a"}, Argument{"[]string", []string{"a"}}},
		{labels(nil), Argument{"[]string", []string(nil)}},
		{[]time.Duration{1}, Argument{"[]int64", []int64{1}}},
		{map[label]status{"a": 1}, Argument{"map[string]int8", map[string]int8{"a": 1}}},
		{map[label]status(nil), Argument{"map[string]int8", map[string]int8(nil)}},
		{map[string]byte{"a": 1}, Argument{"map[string]uint8", map[string]uint8{"a": 1}}},
		{order{1}, Argument{"json", order{1}}},
		{(*order)(nil), Argument{"json", (*order)(nil)}},
		{[2]int{}, Argument{"json", [2]int{}}},
		{matrix{{1}}, Argument{"json", matrix{{1}}}},
		{[]any{1}, Argument{"json", []any{1}}},
		{[]error{nil}, Argument{"json", []error{nil}}},
		{map[int]string{}, Argument{"json", map[int]string{}}},
		{[]time.Time{now}, Argument{"json", []time.Time{now}}},
		{tree{}, Argument{"json", tree{}}},
		{loop(nil), Argument{"", loop(nil)}},
		{1i, Argument{"", 1i}},
		{uintptr(1), Argument{"", uintptr(1)}},
		{unsafe.Pointer(nil), Argument{"", unsafe.Pointer(nil)}},
		{(chan int)(nil), Argument{"", (chan int)(nil)}},
		{callback(nil), Argument{"", callback(nil)}},
		{[]chan int{}, Argument{"", []chan int{}}},
		{[1]uintptr{}, Argument{"", [1]uintptr{}}},
		{map[string][]func(){}, Argument{"", map[string][]func(){}}},
		{map[float64]int{}, Argument{"", map[float64]int{}}},
		{(*complex64)(nil), Argument{"", (*complex64)(nil)}},
	} {
		got := Infer(c.in)
		if got.Type != c.want.Type || !reflect.DeepEqual(got.Value, c.want.Value) {
			t.Errorf("Infer(%T %v) = %#v, want %#v", c.in, c.in, got, c.want)
		}
	}
}
