package dispatcher_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

func TestADeadLetterTellsItsStory(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.worker("w", tasks{"fails": fn(func(int) (string, error) { return "ignored", errors.New("no such user") })})
	task := dispatcher.NewTask("fails", 1)
	task.Headers = map[string]interface{}{"tenant": "blue"}
	if err := r.server.Publish(task); err != nil {
		t.Fatal(err)
	}
	d := r.dead(1)[0]
	for name, want := range map[string]any{
		"tenant": "blue", "x-dispatcher-reason": "failed", "x-dispatcher-error": "no such user", "x-dispatcher-attempt": int64(1),
		"x-dispatcher-queue": "jobs", "x-dispatcher-routing-key": "jobs", "x-dispatcher-worker": "w",
	} {
		if d.Headers[name] != want {
			t.Errorf("%s = %v, want %v", name, d.Headers[name], want)
		}
	}
	diedAt, _ := d.Headers["x-dispatcher-died-at"].(string)
	if at, err := time.Parse(time.RFC3339Nano, diedAt); err != nil || time.Since(at) > time.Hour {
		t.Errorf("died at %q: %v", diedAt, err)
	}
	if d.ID != task.UUID || d.Type != "fails" || d.ContentType != "application/json" || !strings.Contains(string(d.Body), task.UUID) {
		t.Errorf("message %+v", d.Message)
	}
}

func TestErrorTextsAreCutAndValid(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.worker("w", tasks{
		"long":    fn(func() error { return errors.New(strings.Repeat("é", 100_000)) }),
		"invalid": fn(func() error { return errors.New("a\xffb") }),
	})
	for _, name := range []string{"long", "invalid"} {
		r.publish(name)
		text, _ := r.dead(1)[0].Headers["x-dispatcher-error"].(string)
		if len(text) == 0 || len(text) > 1100 || !utf8.ValidString(text) {
			t.Errorf("%s: %d bytes, valid %v", name, len(text), utf8.ValidString(text))
		}
	}
}

// D5: an unknown task went round and round in gofort/dispatcher, thousands of times a second.
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
			t.Errorf("taken %d times in an hour, want about 125", n)
		}
		c, err := r.session().Consume(t.Context(), broker.ConsumeOptions{Queue: "jobs.dead", Prefetch: 1})
		if err != nil {
			t.Fatal(err)
		}
		d := <-c.Deliveries()
		if after := time.Since(began); after < time.Hour || after > time.Hour+time.Minute {
			t.Errorf("a dead letter after %v, want an hour", after)
		}
		if d.Headers["x-dispatcher-reason"] != "unknown_task" || !strings.Contains(d.Headers["x-dispatcher-error"].(string), `"unknown"`) {
			t.Errorf("headers %v", d.Headers)
		}
	})
}

// D1 is among these: an unknown argument type ended gofort/dispatcher's process, again and again.
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
			t.Errorf("%s: id %q, reason %v: %v, body changed: %v", name, d.ID, d.Headers["x-dispatcher-reason"],
				d.Headers["x-dispatcher-error"], string(d.Body) != c.body)
		}
		if text, _ := d.Headers["x-dispatcher-error"].(string); text == "" || len(text) > 1100 {
			t.Errorf("%s: error of %d bytes", name, len(text))
		}
	}
	if n := calls.Load(); n != 0 {
		t.Errorf("%d calls were made", n)
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

func TestADeadLetterThatCannotBeWrittenKeepsItsTaskOpen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var ran atomic.Int32
		r.worker("w", tasks{"fails": fn(func() error { ran.Add(1); return errors.New("no") })})
		r.chaos.FailDeadLetter(errors.New("disk full"))
		r.publish("fails")
		<-time.After(10 * time.Minute)
		h := r.server.Health(t.Context())
		if h.OK() || h.Workers[0].Stuck != 1 || h.Workers[0].LastError == nil {
			t.Errorf("health %+v, want it to say so", h)
		}
		if q := r.inspect("jobs"); q.Ready != 0 || q.Unsettled != 1 || ran.Load() != 1 {
			t.Errorf("queue %+v, run %d times: want it open and run once", q, ran.Load())
		}
		r.chaos.FailDeadLetter(nil)
		<-time.After(time.Minute) // the longest pause is 45 s
		r.dead(1)
		if h := r.server.Health(t.Context()); !h.OK() {
			t.Errorf("health %+v after the dead letter", h)
		}
	})
}

func TestAnUnwritableDeadLetterIsGivenBackAtShutdown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *dispatcher.ServerConfig) { c.ShutdownTimeout = -1 })
		w := r.worker("w", tasks{"fails": fn(func() error { return errors.New("no") })})
		r.chaos.FailDeadLetter(errors.New("disk full"))
		r.publish("fails")
		synctest.Wait()
		began := time.Now()
		w.Close()
		if took := time.Since(began); took < 30*time.Second || took > 32*time.Second {
			t.Errorf("Close took %v, want half a minute", took)
		}
		if q := r.inspect("jobs"); q.Ready != 1 || q.Unsettled != 0 {
			t.Errorf("queue %+v, want the task back", q)
		}
	})
}

func TestADeletedDeadLetterQueueIsMadeAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.worker("w", tasks{"fails": fn(func() error { return errors.New("no") })}, limit(1))
		if err := r.session().Delete(t.Context(), "jobs.dead"); err != nil {
			t.Fatal(err)
		}
		r.publish("fails")
		<-time.After(time.Second)
		r.dead(1)
	})
}

func TestALostDeliveryEndsTheTriesToWriteItsDeadLetter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.worker("w", tasks{"fails": fn(func() error { return errors.New("no") })}, limit(1))
		r.chaos.FailDeadLetter(errors.New("disk full"))
		r.publish("fails")
		synctest.Wait()
		r.chaos.FailOpen(errors.New("down"))
		r.chaos.Kill()
		<-time.After(time.Hour)
		if n := strings.Count(r.log.String(), "verdict not written"); n > 3 {
			t.Errorf("%d tries for a delivery that was lost", n)
		}
		if w := r.server.Health(t.Context()).Workers[0]; w.Stuck != 0 {
			t.Errorf("health %+v: nothing is stuck any more", w)
		}
	})
}

func TestTheLogHasNoArgumentValuesAndNoForgedLines(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.worker("w", tasks{
		"login":  fn(func(int) {}),
		"forges": fn(func() error { return errors.New("a\nerror: forged by the text") }),
		"panics": fn(func() { panicsHere() }),
	})
	r.publish("login", "hunter2")
	if text := r.dead(1)[0].Headers["x-dispatcher-error"].(string); !strings.Contains(text, "hunter2") {
		t.Errorf("header %q: a person needs the value", text)
	}
	task := dispatcher.NewTask("forges")
	task.UUID = "u\nerror: forged by the uuid"
	if err := r.server.Publish(task); err != nil {
		t.Fatal(err)
	}
	r.dead(1)
	r.publish("panics")
	r.dead(1)
	eventually(t, "the stack of the panic is in the log", func() bool { return strings.Contains(r.log.String(), "panicsHere") })
	if log := r.log.String(); strings.Contains(log, "hunter2") || strings.Contains(log, "\nerror: forged") {
		t.Errorf("log:\n%s", log)
	}
}

func panicsHere() { panic("boom") }
