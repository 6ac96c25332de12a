package dispatcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/wire"
)

// What decodes, encoded again with its values as they were, decodes to the same task.
func FuzzDecodeTask(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "wire", "*.json"))
	if err != nil || len(files) == 0 {
		f.Fatal("no golden files", err)
	}
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		task, err := wire.Decode(body)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || len(err.Error()) > 400 || !reflect.DeepEqual(task, wire.Task{}) {
				t.Fatalf("%+v, %v", task, err)
			}
			return
		}
		if task.Name == "" || !json.Valid(body) {
			t.Fatalf("decoded %q to %+v", body, task)
		}
		again := wire.AppendString([]byte(`{"uuid":`), task.UUID)
		again = wire.AppendString(append(again, `,"name":`...), task.Name)
		again = append(again, `,"args":[`...)
		for i, arg := range task.Args {
			if i > 0 {
				again = append(again, ',')
			}
			again = wire.AppendString(append(again, `{"type":`...), arg.Type)
			again = append(append(again, `,"value":`...), arg.Value...)
			again = append(again, '}')
		}
		second, err := wire.Decode(append(again, "]}"...))
		if err != nil || !reflect.DeepEqual(second, task) {
			t.Fatalf("%+v became %+v, %v", task, second, err)
		}
		// encoding/json, which is laxer, sees the same values where it sees the same keys.
		for _, arg := range task.Args {
			if !json.Valid(arg.Value) {
				t.Fatalf("value %q", arg.Value)
			}
		}
	})
}

// fuzzParams are parameter types; each binds an argument to a function with one parameter.
var fuzzParams = []func(typ, raw string) (any, error){
	anyOf[bool], anyOf[string], anyOf[int], anyOf[int8], anyOf[int16], anyOf[int32], anyOf[int64],
	anyOf[uint], anyOf[uint8], anyOf[uint16], anyOf[uint32], anyOf[uint64], anyOf[float32], anyOf[float64],
	anyOf[any], anyOf[*any], anyOf[label], anyOf[status], anyOf[*int8], anyOf[time.Time], anyOf[*time.Time], anyOf[time.Duration],
	anyOf[[]byte], anyOf[[]string], anyOf[labels], anyOf[[]int8], anyOf[[]uint64], anyOf[[]any], anyOf[[]*float32], anyOf[[3]int],
	anyOf[map[string]int], anyOf[map[label]any], anyOf[map[string]string], anyOf[map[int8]order],
	anyOf[json.RawMessage], anyOf[json.Number], anyOf[order], anyOf[*order], anyOf[tree], anyOf[**int], anyOf[panicking], anyOf[celsius],
}

// Nothing panics, every error is an *ArgumentError, and an integer that arrives is the one in the text.
func FuzzBindArgument(f *testing.F) {
	for _, name := range wire.ScalarNames {
		f.Add(name, []byte("1"))
	}
	for _, g := range golden {
		for _, arg := range g.task.Args {
			raw, err := json.Marshal(arg.Value)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(arg.Type, raw)
		}
	}
	f.Fuzz(func(t *testing.T, typ string, raw []byte) {
		if !json.Valid(raw) || len(raw) > 1<<16 {
			return // decodeTask gives no others
		}
		raw = wire.TrimSpace(raw)
		for i, bind := range fuzzParams {
			got, err := bind(typ, string(raw))
			if err != nil {
				if bad, ok := errors.AsType[*ArgumentError](err); !ok || bad.Position != 0 || bad.Want == "" || len(bad.Error()) > 800 {
					t.Fatalf("%q %s into %d: %v", typ, raw, i, err)
				}
				continue
			}
			if wire.ParseType(typ).Shape == wire.ShapeUnknown {
				t.Fatalf("unknown type %q gave %#v", typ, got)
			}
			switch got.(type) {
			case int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64, status, time.Duration:
				if want := exactInteger(string(raw)); want == nil || want.String() != bareInteger(got) {
					t.Fatalf("%q %s gave %T %v, want %v", typ, raw, got, got, want)
				}
			}
		}
		if wire.ParseType(typ).Shape != wire.ShapeUnknown && json.Valid(raw) && wire.BadText(raw) < 0 {
			// What encodes under a declared type also binds to any.
			if _, err := encodeTask(&Task{Name: "n", Args: []TaskArgument{{typ, json.RawMessage(raw)}}}); err == nil {
				if _, err := anyOf[any](typ, string(raw)); err != nil {
					t.Fatalf("%q %s encodes and does not bind: %v", typ, raw, err)
				}
			}
		}
	})
}

// bareInteger prints the integer itself, also of types with a String method.
func bareInteger(v any) string { return fmt.Sprintf("%d", v) }

// exactInteger reads a JSON number with math/big; nil = it is not an integer, or its exponent is absurd.
func exactInteger(raw string) *big.Int {
	mantissa, exp, _ := strings.Cut(strings.ToLower(raw), "e")
	if len(strings.TrimLeft(exp, "+-0")) > 6 { // big.Rat would write it out; no text here has that many digits
		if strings.Trim(mantissa, "-0.") == "" {
			return new(big.Int)
		}
		return nil
	}
	r, ok := new(big.Rat).SetString(raw)
	if !ok || !r.IsInt() {
		return nil
	}
	return r.Num()
}

// inInteger reports min <= n <= max, of integers beyond 64 bits too.
func inInteger(n, least, most string) bool {
	v, a, b := exactInteger(n), exactInteger(least), exactInteger(most)
	return v.Cmp(a) >= 0 && v.Cmp(b) <= 0
}
