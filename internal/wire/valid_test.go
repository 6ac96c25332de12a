package wire

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// agree checks wellFormed against encoding/json.
func agree(t *testing.T, raw []byte) {
	t.Helper()
	want := json.Valid(raw) && badText(raw) < 0
	if got := wellFormed(raw); got != want && (got || depthOf(raw) <= maxFastDepth) {
		t.Errorf("%.200q: well formed %t, want %t", raw, got, want)
	}
}

// depthOf returns how deep brackets are nested at most, those in strings included.
func depthOf(raw []byte) (most int) {
	depth := 0
	for _, c := range raw {
		switch c {
		case '{', '[':
			depth++
			most = max(most, depth)
		case '}', ']':
			depth--
		}
	}
	return most
}

func TestWellFormedAgreesWithEncodingJSON(t *testing.T) {
	t.Parallel()
	pieces := []string{
		`{`, `}`, `[`, `]`, `,`, `:`, `"`, `"a"`, `"\n"`, `"\x"`, `"\u00e9"`, `"\ud83d\ude42"`, `"\ud83d"`, `"\ude42"`, `"\ud83d\u0041"`, `"\u12`, "\"\\u\x1000\x41\"", `"\u00Ag"`, `"\uABCD"`, `"é🙂"`,
		"\"\xff\"", "\"\t\"", "\"\x7f\"", `0`, `-0`, `01`, `-`, `1.5`, `1.`, `.5`, `1e3`, `1E+3`, `1e`, `1e-`, `9007199254740993`, `true`, `false`, `null`, `nul`, `True`,
		` `, "\t", "\r\n", "\v", "\x00", `x`, ``,
	}
	for _, a := range pieces {
		for _, b := range pieces {
			for _, c := range pieces {
				for _, frame := range []string{"%", "[%]", `{"k":%}`, "{%}"} {
					agree(t, []byte(strings.Replace(frame, "%", a+b+c, 1)))
				}
			}
		}
	}
	for _, n := range []int{1, maxFastDepth - 1, maxFastDepth, maxFastDepth + 1, 9_999, 10_000, 10_001} {
		agree(t, []byte(strings.Repeat("[", n)+strings.Repeat("]", n)))
		agree(t, []byte(strings.Repeat(`{"a":`, n)+"1"+strings.Repeat("}", n)))
	}
}

// The fast way must give the same task as the slow one, or none.
func FuzzCanonical(f *testing.F) {
	for _, body := range goldenBodies(f) {
		f.Add(body)
	}
	for _, body := range []string{
		`{"uuid":"","name":"n","args":null}`, `{"uuid":"u","name":"n","args":[]}`, `{"uuid":"u","name":"é","args":[{"type":"int","value":1},{"type":"no","value":[{"a":"}"}]}]}`,
		`{"uuid":"u","name":"\n","args":[]}`, `{"uuid":"u","name":"n","args":[],"x":1}`, `{"uuid":"u","name":"n","args":[,]}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		fast, ok := canonical(nil, body, nil)
		if !ok {
			if !reflect.DeepEqual(fast, Task{}) {
				t.Errorf("%q: a task and no success: %+v", body, fast)
			}
			return
		}
		slow, err := Decode(append([]byte(" "), body...)) // not the fast form
		if err != nil || !reflect.DeepEqual(fast, slow) {
			t.Errorf("%q:\nfast %+v\nslow %+v, %v", body, fast, slow, err)
		}
	})
}

// wellFormed must never accept what encoding/json refuses.
func FuzzWellFormed(f *testing.F) {
	for _, body := range goldenBodies(f) {
		f.Add(body)
	}
	corpus, err := filepath.Glob(filepath.Join("testdata", "fuzz", "FuzzDecodeTask", "*"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range corpus {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(agree)
}

// Eight bytes are looked at together. Each byte counts at each place, whatever its neighbours are.
func TestPlainTextEndsAtTheFirstSpecialByte(t *testing.T) {
	t.Parallel()
	for _, neighbour := range []byte{' ', '!', '#', '[', ']', 'a', 0x7f} {
		for c := range 256 {
			for at := range 24 {
				b := bytes.Repeat([]byte{neighbour}, 24)
				b[at] = byte(c)
				want := at
				if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
					want = len(b)
				}
				if got := endOfPlain(b, 0); got != want {
					t.Fatalf("%q: ends at %d, want %d", b, got, want)
				}
				b[23] = 0
				if got := endOfPlain(b, 0); got != min(want, 23) {
					t.Fatalf("%q: ends at %d, want %d", b, got, min(want, 23))
				}
			}
		}
	}
}
