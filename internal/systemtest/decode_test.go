package systemtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
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
	clear(body) // the task must have its own copies
	var to string
	var n int64
	if err := task.DecodeArgs(&to, &n); err != nil || task.UUID != "u-1" || task.Name != "send" || to != "ann" || n != math.MaxInt64 {
		t.Errorf("%+v, %q %d, %v", task, to, n, err)
	}
	if task, err := dispatcher.DecodeTask([]byte(`{"name":"old"}`)); err != nil || task.UUID != "" || task.Args != nil || task.DecodeArgs() != nil {
		t.Errorf("body of an old sender: %+v, %v", task, err)
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
		t.Errorf("the targets changed to %d, %d", one, two)
	}
}

// Argument types may decode themselves. Then user code runs before the task function is called.

// hung is an argument whose decoding calls a function, which it finds by its name.
type hung struct{ Name string }

var decoding sync.Map // of func(), by hung.Name

func (h *hung) UnmarshalJSON(raw []byte) error {
	type plain hung
	if err := json.Unmarshal(raw, (*plain)(h)); err != nil {
		return err
	}
	if f, ok := decoding.Load(h.Name); ok {
		f.(func())()
	}
	return nil
}

// onDecode returns an argument that calls f while it is decoded.
func onDecode(t *testing.T, f func()) hung {
	t.Helper()
	decoding.Store(t.Name(), f)
	t.Cleanup(func() { decoding.Delete(t.Name()) })
	return hung{t.Name()}
}

func TestDecodingThatHangsIsTimedOutAndTheFunctionIsNeverCalled(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		var st story
		s := v.server(func(c *dispatcher.ServerConfig) { c.Hooks, c.Retry = st.hooks(), fast(3) })
		gate, entered := make(chan struct{}), make(chan struct{}, 1)
		h := onDecode(v.t, func() { entered <- struct{}{}; <-gate })
		ran := make(chan struct{}, 1)
		v.worker(s, "w", tasks{
			"n":     {Timeout: 20 * time.Millisecond, Function: func(hung) { v.t.Error("called after its dead letter was written") }},
			"other": fn(func() { ran <- struct{}{} }),
		}, limit(1))
		v.publish(s, "n", h)
		wait(v.t, entered, "decoding")
		if w := s.Health(v.t.Context()).Workers[0]; w.Running != 1 {
			v.t.Errorf("health while decoding hangs: %+v", w)
		}
		d := v.dead("timeout")
		if d.Headers["x-dispatcher-attempt"] != int64(0) || d.Headers["x-dispatcher-error"] != "task timeout of 20ms: its arguments are still being decoded" {
			v.t.Errorf("headers %v", d.Headers)
		}
		v.publish(s, "other")
		wait(v.t, ran, "task that runs meanwhile")
		if w := s.Health(v.t.Context()).Workers[0]; w.Abandoned != 1 {
			v.t.Errorf("health while the call is abandoned: %+v", w)
		}
		close(gate)
		eventually(v.t, "the call has ended", func() bool {
			w := s.Health(v.t.Context()).Workers[0]
			return w.Running == 0 && w.Abandoned == 0
		})
		if st.has("start n 1") || st.has("finish n 1: dead_letter, <nil>") || !st.has("dead letter n: timeout") {
			v.t.Errorf("hooks:\n%s", st.String())
		}
	})
}

func TestDecodingThatHangsIsSeenAndLeftBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate := make(chan struct{})
		h := onDecode(t, func() { <-gate })
		w := r.worker("w", tasks{"n": fn(func(hung) { t.Error("called after the worker has stopped") })}, limit(1))
		r.publish("n", h)
		synctest.Wait()
		if w := r.server.Health(t.Context()).Workers[0]; w.Running != 1 {
			t.Errorf("health %+v", w)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.Shutdown(ctx); !errors.Is(err, dispatcher.ErrTasksRunning) {
			t.Errorf("Shutdown: %v", err)
		}
		if err := w.Start(r.server); !errors.Is(err, dispatcher.ErrWorkerStarted) {
			t.Errorf("Start: %v", err)
		}
		close(gate)
		synctest.Wait()
		if info := r.inspect("jobs"); info.Ready != 1 {
			t.Errorf("queue %+v: want the task released", info)
		}
	})
}

// If decoding ends after the drain's time is up, the function is not called and the attempt is not counted.
func TestDecodingThatEndsAfterTheDrainGivesTheTaskBack(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		gate, entered := make(chan struct{}), make(chan struct{}, 1)
		h := onDecode(v.t, func() { entered <- struct{}{}; <-gate })
		var cancelled atomic.Bool
		beside := make(chan struct{}, 1)
		w := v.worker(s, "w", tasks{
			"n": fn(func(hung) { v.t.Error("called after the drain's end") }),
			"beside": fn(func(ctx context.Context) {
				beside <- struct{}{}
				<-ctx.Done()
				cancelled.Store(true)
				close(gate)
			}),
		}, limit(2))
		v.publish(s, "n", h)
		wait(v.t, entered, "decoding")
		v.publish(s, "beside")
		wait(v.t, beside, "task that runs meanwhile")
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if err := w.Shutdown(ended); err != nil || !cancelled.Load() {
			v.t.Errorf("Shutdown: %v", err)
		}
		if st := s.Stats(); st.Released < 1 || st.Lost != 0 { // the released task may be delivered again before the consumer ends
			v.t.Errorf("stats %+v", st)
		}
		if d := v.take(v.name, 1)[0]; d.Losses != 0 || d.Type != "n" {
			v.t.Errorf("released message: %+v", d)
		}
	})
}

func TestDecodingThatPanicsOrExitsIsABadArgument(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(){"panic": func() { panic("boom") }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var st story
			r := newRig(t, func(c *dispatcher.ServerConfig) { c.Hooks = st.hooks() })
			ran := make(chan struct{}, 1)
			r.worker("w", tasks{
				"n":     {Timeout: time.Minute, Function: func(hung) { t.Error("called") }},
				"other": fn(func() { ran <- struct{}{} }),
			}, limit(1))
			r.publish("n", onDecode(t, f))
			if d := r.dead(1)[0]; d.Headers["x-dispatcher-reason"] != "bad_arguments" || d.Headers["x-dispatcher-attempt"] != int64(0) {
				t.Errorf("headers %v", d.Headers)
			}
			r.publish("other")
			wait(t, ran, "task after it; its slot is lost")
			if w := r.server.Health(t.Context()).Workers[0]; w.Abandoned != 0 {
				t.Errorf("health %+v", w)
			}
			if st.has("start n 1") {
				t.Errorf("hooks:\n%s", st.String())
			}
		})
	}
}
