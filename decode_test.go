package dispatcher_test

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

func TestDecodeTaskReadsABody(t *testing.T) {
	t.Parallel()
	body := []byte(`{"uuid":"u-1","name":"send","args":[{"type":"string","value":"ann"},{"type":"int64","value":9223372036854775807}],"new":1}`)
	task, err := dispatcher.DecodeTask(body)
	if err != nil {
		t.Fatal(err)
	}
	clear(body) // the task has copies
	var to string
	var n int64
	if err := task.DecodeArgs(&to, &n); err != nil || task.UUID != "u-1" || task.Name != "send" || to != "ann" || n != math.MaxInt64 {
		t.Errorf("%+v, %q %d, %v", task, to, n, err)
	}
	if task, err := dispatcher.DecodeTask([]byte(`{"name":"old"}`)); err != nil || task.UUID != "" || task.Args != nil || task.DecodeArgs() != nil {
		t.Errorf("of an old sender: %+v, %v", task, err)
	}
	for _, bad := range []string{"", "{}", `{"name":""}`, `{"name":"n","args":[1]}`, `[]`} {
		if task, err := dispatcher.DecodeTask([]byte(bad)); !errors.Is(err, dispatcher.ErrMalformed) || task != nil {
			t.Errorf("%s: %+v, %v", bad, task, err)
		}
	}
}

func TestDecodeArgsConvertsAsAWorkerDoes(t *testing.T) {
	t.Parallel()
	type order struct{ ID int64 }
	at := time.Date(2026, 11, 28, 1, 2, 3, 4, time.UTC)
	task := dispatcher.NewTask("n", int8(7), 1.5, []byte{0}, at, []string{"a"}, map[string]int{"b": 2}, order{1<<53 + 1}, nil, time.Hour)
	var (
		small  uint64
		f      float64
		data   []byte
		when   time.Time
		list   []string
		table  map[string]int
		o      order
		absent *order
		pause  time.Duration
	)
	if err := task.DecodeArgs(&small, &f, &data, &when, &list, &table, &o, &absent, &pause); err != nil {
		t.Fatal(err)
	}
	got := []any{small, f, data, when, list, table, o, absent, pause}
	want := []any{uint64(7), 1.5, []byte{0}, at, []string{"a"}, map[string]int{"b": 2}, order{1<<53 + 1}, (*order)(nil), time.Hour}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	var untyped any
	if err := dispatcher.NewTask("n", int8(7)).DecodeArgs(&untyped); err != nil || untyped != int8(7) {
		t.Errorf("into any: %T %v, %v", untyped, untyped, err)
	}
}

func TestDecodeArgsRefusesWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	one, two := 1, int8(2)
	var text string
	for want, c := range map[string]struct {
		args []dispatcher.TaskArgument
		into []any
	}{
		`want 1 argument, got 2`:                                         {dispatcher.Args(5, 6), []any{&one}},
		`want 2 arguments, got 0`:                                        {nil, []any{&one, &two}},
		`argument 1: want int8, got int 300`:                             {dispatcher.Args(5, 300), []any{&one, &two}},
		`argument 0: want string, got int 5`:                             {dispatcher.Args(5), []any{&text}},
		`argument 0: want a pointer that is not nil, got int`:            {dispatcher.Args(5), []any{one}},
		`argument 0: want a pointer that is not nil, got *int`:           {dispatcher.Args(5), []any{(*int)(nil)}},
		`argument 0: want a pointer that is not nil, got <nil>`:          {dispatcher.Args(5), []any{nil}},
		`argument 0: want a known type, got type "int128" of a Go value`: {[]dispatcher.TaskArgument{{Type: "int128", Value: 1}}, []any{&one}},
		`argument 0: want int8, got 300`:                                 {[]dispatcher.TaskArgument{{Type: "int8", Value: 300}}, []any{&one}},
	} {
		err := (&dispatcher.Task{Name: "n", Args: c.args}).DecodeArgs(c.into...)
		bad, ok := errors.AsType[*dispatcher.ArgumentError](err)
		if !ok || bad.Task != "n" || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	if one != 1 || two != 2 {
		t.Errorf("changed to %d, %d", one, two)
	}
}
