package systemtest_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// D1 is among these cases: an unknown argument type made gofort/dispatcher's process crash, again and again.
func TestHostileBodiesBecomeDeadLetters(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *dispatcher.ServerConfig) { c.MaxBodyBytes = 100_000 })
	var calls atomic.Int32
	r.worker("w", tasks{
		"n": fn(func(int8) { calls.Add(1) }),
		"s": fn(func(string, bool) { calls.Add(1) }),
	})
	arg := func(typ, value string) string {
		return `{"uuid":"u","name":"n","args":[{"type":"` + typ + `","value":` + value + `}]}`
	}
	for name, c := range map[string]struct{ body, reason string }{
		"empty":                {``, "malformed"},
		"not JSON":             {`hello`, "malformed"},
		"cut off":              {`{"uuid":"u","name":"n","args":[`, "malformed"},
		"trailing data":        {`{"uuid":"u","name":"n","args":null} x`, "malformed"},
		"null":                 {`null`, "malformed"},
		"array":                {`[]`, "malformed"},
		"deep nesting":         {`{"uuid":"u","name":"n","args":` + strings.Repeat("[", 40_000) + strings.Repeat("]", 40_000) + `}`, "malformed"},
		"deep value":           {arg("json", strings.Repeat("[", 40_000)+strings.Repeat("]", 40_000)), "malformed"},
		"invalid UTF-8":        {"{\"uuid\":\"u\",\"name\":\"n\xff\",\"args\":null}", "malformed"},
		"duplicate keys":       {`{"uuid":"u","name":"s","name":"n","args":null}`, "malformed"},
		"duplicate arg keys":   {`{"uuid":"u","name":"n","args":[{"type":"int8","type":"int8","value":1}]}`, "malformed"},
		"name is a number":     {`{"uuid":"u","name":1,"args":null}`, "malformed"},
		"no name":              {`{"uuid":"u","args":null}`, "malformed"},
		"args is an object":    {`{"uuid":"u","name":"n","args":{}}`, "malformed"},
		"argument is a number": {`{"uuid":"u","name":"n","args":[1]}`, "malformed"},
		"argument has no type": {`{"uuid":"u","name":"n","args":[{"value":1}]}`, "malformed"},
		"too large":            {`{"uuid":"u","name":"n","args":[` + strings.Repeat(" ", 100_000) + `]}`, "malformed"},
		"case of keys":         {`{"UUID":"u","NAME":"n","ARGS":null}`, "malformed"},
		"unknown type (D1)":    {arg("complex128", "1"), "bad_arguments"},
		"empty type":           {arg("", "1"), "bad_arguments"},
		"null value":           {arg("int8", "null"), "bad_arguments"},
		"overflow":             {arg("int8", "300"), "bad_arguments"},
		"declared overflow":    {arg("int64", "128"), "bad_arguments"},
		"huge number":          {arg("int8", "1e999999999"), "bad_arguments"},
		"long number":          {arg("int8", strings.Repeat("9", 50_000)), "bad_arguments"},
		"fraction":             {arg("int8", "1.5"), "bad_arguments"},
		"string for a number":  {arg("int8", `"1"`), "bad_arguments"},
		"wrong type":           {arg("string", `"x"`), "bad_arguments"},
		"missing arguments":    {`{"uuid":"u","name":"s","args":[{"type":"string","value":"x"}]}`, "bad_arguments"},
		"extra arguments":      {`{"uuid":"u","name":"n","args":[{"type":"int8","value":1},{"type":"int8","value":1}]}`, "bad_arguments"},
		"no arguments":         {`{"uuid":"u","name":"n"}`, "bad_arguments"},
	} {
		r.publishRaw("jobs", broker.Message{ID: name, Body: []byte(c.body), Headers: map[string]any{"odd": struct{}{}}})
		d := r.dead(1)[0]
		if d.Headers["x-dispatcher-reason"] != c.reason || d.ID != name || string(d.Body) != c.body {
			t.Errorf("%s: the dead letter has id %q, reason %v: %v; body changed: %v", name, d.ID, d.Headers["x-dispatcher-reason"],
				d.Headers["x-dispatcher-error"], string(d.Body) != c.body)
		}
		if text, _ := d.Headers["x-dispatcher-error"].(string); text == "" || len(text) > 1100 {
			t.Errorf("%s: the error has %d bytes", name, len(text))
		}
	}
	if n := calls.Load(); n != 0 {
		t.Errorf("%d calls, want none", n)
	}
}

func TestForeignMessagesWithoutIdentityRun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	got := make(chan string, 1)
	r.worker("w", tasks{"n": {TaskUUIDAsFirstArg: true, Function: func(uuid string) { got <- uuid }}})
	r.publishRaw("jobs", broker.Message{ID: "from the message", Body: []byte(`{"name":"n","unknown":{"x":[1]}}`)})
	if uuid := wait(t, got, "task"); uuid != "from the message" {
		t.Errorf("uuid %q", uuid)
	}
}

// D5: gofort/dispatcher requeued an unknown task immediately, thousands of times a second.
func TestD5AnUnknownTaskIsPutOffWithGrowingPausesAndThenKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.worker("w", tasks{"known": fn(func() {})})
		r.publish("unknown", 1)
		began := time.Now()
		<-time.After(59 * time.Minute)
		synctest.Wait()
		if n := r.server.Stats().Received; n < 110 || n > 130 {
			t.Errorf("received %d times in an hour, want about 125", n)
		}
		c, err := r.session().Consume(t.Context(), broker.ConsumeOptions{Queue: "jobs.dead", Prefetch: 1})
		if err != nil {
			t.Fatal(err)
		}
		d := <-c.Deliveries()
		if after := time.Since(began); after < time.Hour || after > time.Hour+time.Minute {
			t.Errorf("dead-lettered after %v, want an hour", after)
		}
		if d.Headers["x-dispatcher-reason"] != "unknown_task" || !strings.Contains(d.Headers["x-dispatcher-error"].(string), `"unknown"`) {
			t.Errorf("headers %v", d.Headers)
		}
	})
}

func TestUnknownTasksWaitForAWorkerThatKnowsThem(t *testing.T) {
	t.Parallel()
	everywhere(t, func(v *venue) {
		s := v.server()
		set := tasks{"old": fn(func() {})}
		strict := v.worker(s, "strict", set, func(c *dispatcher.WorkerConfig) { c.UnknownTaskMaxAge = time.Second })
		v.publish(s, "typo", 1)
		d := v.dead("unknown_task")
		if n, _ := d.Headers["x-dispatcher-misses"].(int64); n < 2 || d.Headers["x-dispatcher-attempt"] != int64(0) {
			v.t.Errorf("headers %v: want several misses and no attempt", d.Headers)
		}
		strict.Close()
		old := v.worker(s, "old", set)
		before := s.Stats().Postponed
		task := v.publish(s, "new")
		eventually(v.t, "the task is postponed", func() bool { return s.Stats().Postponed > before })
		ran := make(chan dispatcher.TaskInfo, 1)
		v.worker(s, "new", tasks{"new": fn(func(ctx context.Context) { info, _ := dispatcher.TaskFromContext(ctx); ran <- info })})
		old.Close() // otherwise it might keep getting the task for longer than this test waits
		if info := wait(v.t, ran, "the new worker's call"); info.UUID != task.UUID || info.Attempt != 1 {
			v.t.Errorf("got %+v", info)
		}
	})
}

// All ten workers are equally likely to get a task, so some tasks are missed dozens of times.
func TestTenWorkersOfWhichOneKnowsTheTaskLoseNone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := memoryVenue(t)
		s := v.server()
		const count = 300
		var mu sync.Mutex
		seen := map[int]int{}
		for i := range 9 {
			v.worker(s, fmt.Sprint("old", i), tasks{"other": fn(func() {})}, limit(10))
		}
		v.worker(s, "new", tasks{"n": fn(func(n int) { mu.Lock(); seen[n]++; mu.Unlock() })}, limit(10))
		for n := range count {
			v.publish(s, "n", n)
		}
		<-time.After(2 * time.Hour)
		synctest.Wait()
		if st := s.Stats(); st.DeadLettered != 0 || st.Postponed < count || st.Succeeded != count || len(seen) != count {
			t.Errorf("%d different tasks ran, stats %+v", len(seen), st)
		}
	})
}
