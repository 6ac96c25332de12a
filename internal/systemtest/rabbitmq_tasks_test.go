package systemtest_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
)

// The files rabbitmq_*_test.go test this library on a real RabbitMQ for each defect of gofort/dispatcher, D1 to D16.
// Each test would fail if this library had the defect. The test of D13 is in tls_test.go.

func TestRabbitMQ_D1AnUnknownArgumentTypeIsADeadLetter(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	got := make(chan string, 1)
	r.worker(tasks{"f": fn(func(s string) { got <- s })}, limit(1))
	r.sendBody(`{"uuid":"u-1","name":"f","args":[{"type":"complex128","value":"x"}]}`)
	r.dead("bad_arguments")
	r.publish("f", "after")
	if s := wait(t, got, "task"); s != "after" {
		t.Errorf("got %q", s)
	}
	if s := r.server.Stats(); s.Received != 2 {
		t.Errorf("stats %+v: a message was delivered again", s)
	}
}

func TestRabbitMQ_D2APanicInATimedTaskIsADeadLetter(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	got := make(chan string, 1)
	r.worker(tasks{
		"timed":   {TimeoutSeconds: 30, Function: func(string) { panic("boom") }},
		"untimed": fn(func(string) { panic("boom") }),
		"f":       {TimeoutSeconds: 30, Function: func(s string) { got <- s }},
	}, limit(1))
	for _, name := range []string{"timed", "untimed"} {
		r.publish(name, "x")
		d := r.dead("failed")
		if text, _ := d.Headers["x-dispatcher-error"].(string); !strings.Contains(text, "boom") {
			t.Errorf("%s: error %q", name, text)
		}
	}
	// In gofort/dispatcher, the wrong number or types of arguments panicked too.
	r.sendBody(`{"uuid":"u-1","name":"f","args":[]}`)
	r.dead("bad_arguments")
	r.sendBody(`{"uuid":"u-2","name":"f","args":[{"type":"int","value":1}]}`)
	r.dead("bad_arguments")
	r.publish("f", "after")
	if s := wait(t, got, "task"); s != "after" {
		t.Errorf("got %q", s)
	}
	if s := r.server.Stats(); s.DeadLettered != 4 {
		t.Errorf("stats %+v", s)
	}
}

func TestRabbitMQ_D5AnUnknownTaskIsNotRequeued(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	got := make(chan int, 1)
	r.worker(tasks{"known": fn(func() { got <- 1 })}, limit(1), func(c *dispatcher.WorkerConfig) { c.UnknownTaskMaxAge = -1 })
	task := r.publish("unknown", 1)
	if d := r.dead("unknown_task"); d.MessageId != task.UUID || d.Type != "unknown" {
		t.Errorf("dead letter %q of type %q", d.MessageId, d.Type)
	}
	r.publish("known")
	wait(t, got, "task")
	if s := r.server.Stats(); s.Received != 2 {
		t.Errorf("%d deliveries of two messages", s.Received)
	}
}

func TestRabbitMQ_D8TimedOutCallsAreBounded(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	var running, most atomic.Int64
	began, gate := make(chan int, 20), make(chan struct{})
	r.worker(tasks{"deaf": {Timeout: 50 * time.Millisecond, Function: func() {
		n := running.Add(1)
		defer running.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		began <- 1
		<-gate
	}}}, limit(2))
	const count = 10
	for range count {
		r.publish("deaf")
	}
	for range 4 { // two abandoned, two in the slots
		wait(t, began, "call")
	}
	for range 2 {
		r.dead("timeout")
	}
	// The calls in the slots have timed out too. They keep their slots.
	eventually(t, "two calls are abandoned", func() bool { return r.server.Health(t.Context()).Workers[0].Abandoned == 2 })
	if n, s := most.Load(), r.server.Stats(); n > 4 || s.Received > 4 || s.Abandoned != 2 {
		t.Errorf("%d calls ran at once, stats %+v", n, s)
	}
	close(gate)
	eventually(t, "all tasks have a verdict", func() bool { s := r.server.Stats(); return s.Succeeded+s.DeadLettered == count })
	if n := most.Load(); n > 4 {
		t.Errorf("%d calls ran at once, want at most 4", n)
	}
}

func TestRabbitMQ_D9NumbersAreExactOrRefused(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	type numbers struct {
		a, b int64
		c, d uint64
		e    float64
	}
	got := make(chan numbers, 1)
	r.worker(tasks{
		"exact": fn(func(a, b int64, c, d uint64, e float64) { got <- numbers{a, b, c, d, e} }),
		"i8":    fn(func(int8) { t.Error("int8 ran") }),
		"u8":    fn(func(uint8) { t.Error("uint8 ran") }),
		"i":     fn(func(int) { t.Error("int ran") }),
		"i64":   fn(func(int64) { t.Error("int64 ran") }),
		"f32":   fn(func(float32) { t.Error("float32 ran") }),
	})
	want := numbers{math.MinInt64, math.MaxInt64, math.MaxUint64, 1<<53 + 1, math.MaxFloat64}
	r.publish("exact", want.a, want.b, want.c, want.d, want.e)
	if n := wait(t, got, "task"); n != want {
		t.Errorf("got %v, want %v", n, want)
	}
	r.sendBody(`{"uuid":"u","name":"exact","args":[{"type":"int64","value":-9223372036854775808},{"type":"int64","value":9223372036854775807},` +
		`{"type":"uint64","value":18446744073709551615},{"type":"uint64","value":9007199254740993},{"type":"float64","value":1.7976931348623157e308}]}`)
	if n := wait(t, got, "raw task"); n != want {
		t.Errorf("raw task: got %v, want %v", n, want)
	}
	for _, bad := range []string{
		`"i8","args":[{"type":"int8","value":300}]`,
		`"u8","args":[{"type":"uint8","value":-1}]`,
		`"i","args":[{"type":"int","value":1.9}]`,
		`"i64","args":[{"type":"int64","value":9223372036854775808}]`,
		`"i8","args":[{"type":"int64","value":300}]`,
		`"f32","args":[{"type":"float32","value":1e300}]`,
		`"i","args":[{"type":"int","value":null}]`,
		`"i","args":[{"type":"int","value":"7"}]`,
	} {
		r.sendBody(`{"uuid":"u","name":` + bad + `}`)
		r.dead("bad_arguments")
	}
}

func TestRabbitMQ_D12AWorkerHasOneConsumerHoweverOftenItIsStarted(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	got := make(chan int, 10)
	w := r.worker(tasks{"n": fn(func(n int) { got <- n })})
	if err := w.Start(r.server); !errors.Is(err, dispatcher.ErrWorkerStarted) {
		t.Errorf("second Start: %v", err)
	}
	if _, consumers := r.count(r.name); consumers != 1 {
		t.Errorf("%d consumers", consumers)
	}
	for n := range 3 {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(w.Close)
		}
		within(t, patience, "four Closes", wg.Wait)
		if _, consumers := r.count(r.name); consumers != 0 {
			t.Errorf("%d consumers after Close", consumers)
		}
		var started atomic.Int64
		for range 4 {
			wg.Go(func() {
				switch err := w.Start(r.server); {
				case err == nil:
					started.Add(1)
				case !errors.Is(err, dispatcher.ErrWorkerStarted):
					t.Errorf("Start: %v", err)
				}
			})
		}
		within(t, patience, "four Starts", wg.Wait)
		if _, consumers := r.count(r.name); consumers != 1 || started.Load() != 1 {
			t.Errorf("%d started, %d consumers", started.Load(), consumers)
		}
		r.publish("n", n)
		if got := wait(t, got, "task"); got != n {
			t.Errorf("got %d, want %d", got, n)
		}
	}
}

// Headers that fill the whole frame leave no room for the library's headers. A worker must not stop even when as many
// such messages arrive as it has slots.
func TestRabbitMQ_HeadersThatFillTheFrameDoNotHoldASlot(t *testing.T) {
	t.Parallel()
	r := newRabbit(t, func(c *dispatcher.ServerConfig) { c.Retry = fast(3) })
	ran := make(chan int, 1)
	r.worker(tasks{"known": fn(func() { ran <- 1 }), "fails": fn(func() error { return errors.New("no") })}, limit(1))
	for _, c := range []struct{ name, reason string }{{"fails", "malformed"}, {"unknown", "malformed"}, {"", "malformed"}} {
		body := fmt.Sprintf(`{"uuid":"u","name":%q,"args":null}`, c.name)
		for _, huge := range []string{"huge", "x-dispatcher-huge", "x-dispatcher-expires-at"} { // a name that begins like the library's does not help
			r.send(amqp.Publishing{DeliveryMode: 2, MessageId: "u", Body: []byte(body), Headers: amqp.Table{huge: strings.Repeat("x", 130_780)}})
			d := r.dead(c.reason)
			if text, _ := d.Headers["x-dispatcher-error"].(string); string(d.Body) != body || d.Headers[huge] != nil || !strings.Contains(text, "headers were dropped") {
				t.Errorf("dead letter %s: %v", d.Body, d.Headers)
			}
			if c.name == "fails" && d.Headers["x-dispatcher-attempt"] != int64(1) {
				t.Errorf("attempt %v, want 1", d.Headers["x-dispatcher-attempt"])
			}
		}
	}
	r.publish("known")
	wait(t, ran, "task")
}
