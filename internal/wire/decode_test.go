package wire

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/text"
)

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
		_, err := Decode([]byte(c.body))
		if !errors.Is(err, fault.ErrMalformed) {
			t.Errorf("%s: %v", text.Excerpt(c.body), err)
		} else if said := err.Error(); !strings.Contains(said, c.want) || len(said) > 200 {
			t.Errorf("%s: %q, want %q", text.Excerpt(c.body), said, c.want)
		}
	}
}

func TestDecodeTakesWhatOtherSendersWrite(t *testing.T) {
	t.Parallel()
	arg := Value{Type: "int", Value: json.RawMessage("1")}
	for _, c := range []struct {
		body string
		want Task
	}{
		{`{"name":"n"}`, Task{Name: "n"}},
		{`{"name":"n","uuid":"","args":null}`, Task{Name: "n"}},
		{`{"name":"n","args":[]}`, Task{Name: "n"}},
		{"\r\n\t {\"args\" : [ { \"value\" :\t1 , \"type\" : \"int\" } ] , \"name\":\"n\" }\n ", Task{Name: "n", Args: []Value{arg}}},
		{`{"NAME":"x","Uuid":5,"uuid":"u","name":"n","version":2,"meta":{"name":"m","a":[1,{"}":"]"}]}}`, Task{UUID: "u", Name: "n"}},
		{`{"name":"\u006e\ud83d\ude42","args":[{"type":"int","value":1,"Value":2,"note":"\\"}]}`, Task{Name: "n🙂", Args: []Value{arg}}},
		{`{"name":"n","args":[{"type":"","value":null},{"type":"no such","value":{"a":[1, "]}\""]}}]}`,
			Task{Name: "n", Args: []Value{{Type: "", Value: json.RawMessage("null")}, {Type: "no such", Value: json.RawMessage(`{"a":[1, "]}\""]}`)}}}},
	} {
		got, err := Decode([]byte(c.body))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\ngot  %+v, %v\nwant %+v", c.body, got, err, c.want)
		}
	}
}

func TestDecodeTakesAsManyArgumentsAsABodyHolds(t *testing.T) {
	t.Parallel()
	const n = 40_000 // about 1 MiB
	body := `{"name":"n","args":[{"type":"int","value":0}` + strings.Repeat(`,{"type":"int","value":7}`, n-1) + `]}`
	task, err := Decode([]byte(body))
	if err != nil || len(task.Args) != n {
		t.Fatalf("%d arguments, %v", len(task.Args), err)
	}
}

// goldenBodies returns the golden bodies of the root package, which owns them.
func goldenBodies(t testing.TB) (bodies [][]byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", "testdata", "wire", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, body)
	}
	return bodies
}

// A task that decodes, when written again with its values unchanged, decodes to the same task.
func FuzzDecodeTask(f *testing.F) {
	for _, body := range goldenBodies(f) {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		task, err := Decode(body)
		if err != nil {
			if !errors.Is(err, fault.ErrMalformed) || len(err.Error()) > 400 || !reflect.DeepEqual(task, Task{}) {
				t.Fatalf("%+v, %v", task, err)
			}
			return
		}
		if task.Name == "" || !json.Valid(body) {
			t.Fatalf("decoded %q to %+v", body, task)
		}
		again := AppendString([]byte(`{"uuid":`), task.UUID)
		again = AppendString(append(again, `,"name":`...), task.Name)
		again = append(again, `,"args":[`...)
		for i, arg := range task.Args {
			if i > 0 {
				again = append(again, ',')
			}
			again = AppendString(append(again, `{"type":`...), arg.Type)
			again = append(append(again, `,"value":`...), arg.Value...)
			again = append(again, '}')
		}
		second, err := Decode(append(again, "]}"...))
		if err != nil || !reflect.DeepEqual(second, task) {
			t.Fatalf("%+v became %+v, %v", task, second, err)
		}
		for _, arg := range task.Args {
			if !json.Valid(arg.Value) {
				t.Fatalf("value %q", arg.Value)
			}
		}
	})
}

// benchBody has two arguments and 160 bytes, like the body of the root package's benchmarks.
var benchBody = []byte(`{"uuid":"8d4c2d1e-6f1b-4c39-9d5a-0123456789ab","name":"bench_noop","args":[{"type":"string","value":"0123456789abcdef0123456789abcdef"},{"type":"int","value":123456}]}`)

func BenchmarkDecode(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(benchBody); err != nil {
			b.Fatal(err)
		}
	}
}
