package wire

import (
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/seed-416683c9/dispatcher/internal/text"
)

func TestD1UnknownTypesAreErrorsAndNeverPanics(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "interface {}", "int128", "INT", "Int64", " int", "int ", "[]", "[]any", "[][]int", "[]json", "[][]byte", "[2]int",
		"map[string]", "map[int]string", "map[string]any", "map[string][]int", "[]time.Time", "complex128", "uintptr", "error", "*int", strings.Repeat("x", 1<<20), "\x00"} {
		for _, raw := range []string{"1", "null", `"x"`, "[]", "{}"} {
			_, bad := fill[any](name, raw)
			if bad == nil || bad.Want != "a known type" || len(bad.Got) > 200 {
				t.Errorf("type %q, value %s: %+v", text.Excerpt(name), raw, bad)
			}
		}
	}
}

// integerRanges are the integers that each declared type can hold, as text.
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
	params := map[string]func(typ, raw string) (any, *Mismatch){
		"int8": anyOf[int8], "int16": anyOf[int16], "int32": anyOf[int32], "int64": anyOf[int64], "int": anyOf[int],
		"uint8": anyOf[uint8], "uint16": anyOf[uint16], "uint32": anyOf[uint32], "uint64": anyOf[uint64], "uint": anyOf[uint],
	}
	for _, r := range integerRanges {
		for declared := range params { // each declared type into a parameter of r.name
			for _, text := range []string{r.min, r.max, r.below, r.above} {
				got, bad := params[r.name](declared, text)
				fits := (text == r.min || text == r.max) && inRange(declared, text)
				if fits && (bad != nil || fmt.Sprint(got) != text) {
					t.Errorf("%s %s into %s: got %v, %+v", declared, text, r.name, got, bad)
				}
				if !fits && bad == nil {
					t.Errorf("%s %s into %s: got %v, want a mismatch", declared, text, r.name, got)
				}
			}
		}
		for _, raw := range []string{"1.5", "1e-1", "1e400", "1e999999999", "-1e999999999999999999999", "0.1e0", `"1"`, "true", "null", "[]", "{}", "1.9", "1e-999999999"} {
			if got, bad := params[r.name](r.name, raw); bad == nil {
				t.Errorf("%s %s: got %v, want a mismatch", r.name, raw, got)
			}
		}
		for raw, want := range map[string]string{"5.0": "5", "1e2": "100", "1.0E+2": "100", "12e1": "120", "1200e-2": "12", "-0": "0", "-0.0e5": "0",
			"0e999999999": "0", "0.000e-999999999": "0", "0.0005e4": "5", "1" + strings.Repeat("0", 500) + "e-500": "1", "0." + strings.Repeat("0", 500) + "7e501": "7"} {
			if got, bad := params[r.name](r.name, raw); bad != nil || fmt.Sprint(got) != want {
				t.Errorf("%s %s: got %v, %+v, want %s", r.name, text.Excerpt(raw), got, bad, want)
			}
		}
	}
}

func inRange(name, text string) bool {
	for _, r := range integerRanges {
		if r.name == name {
			return inInteger(text, r.min, r.max)
		}
	}
	return false
}

// inInteger reports whether least <= n <= most. The integers may have more than 64 bits.
func inInteger(n, least, most string) bool {
	v, a, b := exactInteger(n), exactInteger(least), exactInteger(most)
	return v.Cmp(a) >= 0 && v.Cmp(b) <= 0
}

// exactInteger reads a JSON number with math/big. It returns nil if the number is not an integer or its exponent is
// absurd.
func exactInteger(raw string) *big.Int {
	mantissa, exp, _ := strings.Cut(strings.ToLower(raw), "e")
	if len(strings.TrimLeft(exp, "+-0")) > 6 { // big.Rat would write out all digits, and no text here has that many
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
