package systemtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/testdata/userprogram"
)

// life holds the lines that a server logs during everything that can happen to it.
var life = []string{
	`info: connected`,
	`info: worker receives tasks queue=jobs worker=w`,
	`warn: connection lost err=killed`,
	`warn: cannot connect; trying again retry_in=1s err=down`,
	`info: connected again outage=1s`,
	`info: worker receives tasks again queue=jobs worker=w`,
	`warn: attempt failed queue=jobs worker=w task=fails uuid=u1 attempt=1 retry_in=1.5s err="two words"`,
	`error: task is a dead letter queue=jobs worker=w task=fails uuid=u1 attempt=2 reason=failed err="two words"`,
	`info: task discarded queue=jobs worker=w task=stale uuid=u2 attempt=1 err=stale`,
	`warn: attempt failed queue=jobs worker=w task=panics uuid=u3 attempt=1 retry_in=1.5s err="task panicked: boom"` + "\n" + `STACK`,
	`error: task is a dead letter queue=jobs worker=w task=panics uuid=u3 attempt=2 reason=failed err="task panicked: boom"` + "\n" + `STACK`,
	`warn: task postponed queue=jobs worker=w task=unknown uuid=u4 retry_in=100ms err="unknown task: the worker has no function \"unknown\""`,
	`error: task is a dead letter queue=jobs worker=w task=unknown uuid=u4 reason=unknown_task err="unknown task: the worker has no function \"unknown\""`,
	`error: task is a dead letter queue=jobs worker=w task=slow uuid=u5 attempt=1 reason=timeout err="task timeout of 2s"`,
	`error: task is a dead letter queue=jobs worker=w task=stuck uuid=u6 attempt=1 reason=timeout err="task timeout of 2s: still running 1s later; abandoned"`,
	`info: abandoned call ended queue=jobs worker=w task=stuck uuid=u6 attempt=1 took=1m0s`,
	`warn: connection lost err=killed`,
	`info: connected again outage=0s`,
	`info: worker receives tasks again queue=jobs worker=w`,
	`warn: delivery lost before it was settled; the broker delivers the task again queue=jobs worker=w task=waits uuid=u7 attempt=1 verdict=ack err=killed`,
	`warn: consumer lost queue=jobs worker=w err="queue \"jobs\" was deleted: queue does not exist"`,
	`info: worker receives tasks again queue=jobs worker=w`,
	`info: dead letters deleted queue=jobs count=1`,
	`info: shutdown begins running=1`,
	`info: shutdown ended took=3s`,
}

// live makes all of that happen. Each event ends before the next begins.
func live(t *testing.T, log dispatcher.Log) {
	gate := make(chan struct{})
	r := newRig(t, func(c *dispatcher.ServerConfig) {
		c.Logger = log
		c.Retry = &dispatcher.RetryPolicy{MaxAttempts: 2, InitialInterval: 1500 * time.Millisecond, Jitter: -1}
	})
	r.worker("w", tasks{
		"fails":  fn(func() error { return errors.New("two words") }),
		"stale":  fn(func() error { return dispatcher.Discard(errors.New("stale")) }),
		"panics": {Middleware: []dispatcher.Middleware{userprogram.Through}, Function: userprogram.PanicsHere},
		"slow":   {Timeout: 2 * time.Second, Retry: &dispatcher.RetryPolicy{MaxAttempts: 1}, Function: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
		"stuck":  {Timeout: 2 * time.Second, Function: func() { <-time.After(time.Minute) }},
		"waits":  fn(func() { <-gate }),
	}, limit(2), func(c *dispatcher.WorkerConfig) { c.UnknownTaskMaxAge = 10 * time.Second })
	pass := func() { <-time.After(2 * time.Minute); synctest.Wait() }
	n := 0
	publish := func(name string) {
		n++
		task := dispatcher.NewTask(name)
		task.UUID = fmt.Sprint("u", n)
		if err := r.server.Publish(task); err != nil {
			t.Fatal(err)
		}
	}

	pass()
	r.chaos.FailOpen(errors.New("down"))
	r.chaos.Kill()
	synctest.Wait()
	r.chaos.FailOpen(nil)
	pass()
	for _, name := range []string{"fails", "stale", "panics", "unknown", "slow", "stuck"} {
		publish(name)
		pass()
	}
	publish("waits")
	pass()
	r.chaos.Kill()
	pass()
	close(gate)
	pass()
	gate = make(chan struct{})
	if err := r.session().Delete(t.Context(), "jobs"); err != nil {
		t.Fatal(err)
	}
	pass()
	if n, err := r.server.DeadLetters("jobs").Delete(t.Context(), dispatcher.DeadLetterFilter{Name: "slow"}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	publish("waits")
	synctest.Wait()
	time.AfterFunc(3*time.Second, func() { close(gate) })
	r.server.Close()
	r.server.Close() // logs nothing
}

var (
	duration = regexp.MustCompile(`(retry_in|outage)=(\S+)`)
	// These are the functions of the panicking task and its middleware, and none of the library's.
	userFrames = regexp.MustCompile(`^\S+/userprogram\.PanicsHere\n\t\S+\.go:\d+\n\S+/userprogram\.Through\.func\d+\n\t\S+$`)
)

// normal replaces what differs from run to run: pauses of about a second, and the stack of a panic.
func normal(t *testing.T, line string) string {
	text, stack, _ := strings.Cut(line, "\n")
	if stack != "" {
		if !userFrames.MatchString(stack) {
			t.Errorf("the stack has other frames than the user's:\n%s", stack)
		}
		text += "\nSTACK"
	}
	return duration.ReplaceAllStringFunc(text, func(s string) string {
		name, value, _ := strings.Cut(s, "=")
		if d, err := time.ParseDuration(value); err == nil && d >= 800*time.Millisecond && d <= 1200*time.Millisecond && len(value) <= len("1.23s") {
			return name + "=1s"
		}
		return s
	})
}

func TestTheLogOfAWholeLife(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := &recorder{}
		live(t, log)
		for i, line := range log.lines {
			log.lines[i] = normal(t, line)
		}
		sameLines(t, log.lines)
	})
}

// With slog, the same events give the same levels and messages, and the values are attributes.
func TestSlogGetsTheLogOfAWholeLifeAsAttributes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		live(t, dispatcher.SlogLogger(slog.New(slog.NewJSONHandler(&out, nil))))
		var lines []string
		for text := range strings.Lines(out.String()) {
			lines = append(lines, normal(t, plain(t, text)))
		}
		sameLines(t, lines)
	})
}

// plain turns a line of slog's JSON into the line that a Log without attributes receives. A duration is a number in
// JSON.
func plain(t *testing.T, text string) string {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var line, stack string
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		token, err := d.Token()
		if err != nil {
			t.Fatalf("the line has an attribute that is not a plain value: %v: %s", err, text)
		}
		value := fmt.Sprint(token)
		switch key {
		case "time":
		case "level":
			line = strings.ToLower(value) + ": "
		case "msg":
			line += value
		case "stack":
			stack = "\n" + value
		case "retry_in", "outage", "took":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			line += fmt.Sprintf(" %s=%v", key, time.Duration(n))
		default:
			if strings.ContainsAny(value, ` "`) {
				value = strconv.Quote(value)
			}
			line += fmt.Sprintf(" %s=%s", key, value)
		}
	}
	return line + stack
}

func sameLines(t *testing.T, got []string) {
	t.Helper()
	if !slices.Equal(got, life) {
		for i := range max(len(got), len(life)) {
			g, w := "(none)", "(none)"
			if i < len(got) {
				g = got[i]
			}
			if i < len(life) {
				w = life[i]
			}
			if g != w {
				t.Errorf("line %d\ngot  %s\nwant %s", i, g, w)
			}
		}
	}
}

// A task panics, but its verdict is lost with the connection. The redelivery takes the verdict. The log has two lines
// and one stack.
func TestAStackIsLoggedOnceAnAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		gate := make(chan struct{})
		r.worker("w", tasks{"panics": fn(func() { <-gate; userprogram.PanicsHere() })}, limit(2))
		r.publish("panics")
		synctest.Wait()
		r.chaos.Kill()
		<-time.After(time.Minute)
		close(gate)
		<-time.After(time.Minute)
		text := r.log.String()
		if n := strings.Count(text, "userprogram.PanicsHere\n"); n != 1 {
			t.Errorf("%d stacks, want 1", n)
		}
		for _, want := range []string{
			`warn: delivery lost before it was settled; the broker delivers the task again queue=jobs worker=w task=panics`,
			`verdict="dead letter" err=killed outcome="task panicked: boom"`,
			`error: task is a dead letter queue=jobs worker=w task=panics`,
		} {
			if strings.Count(text, want) != 1 {
				t.Errorf("the log does not have this exactly once: %s", want)
			}
		}
	})
}

func TestTheLogHasNoArgumentValuesAndNoForgedLines(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.worker("w", tasks{
		"login":  fn(func(int) {}),
		"forges": fn(func() error { return errors.New("a\nerror: forged by the text") }),
		"panics": fn(func() { userprogram.PanicsHere() }),
	})
	r.publish("login", "hunter2")
	if text := r.dead(1)[0].Headers["x-dispatcher-error"].(string); !strings.Contains(text, "hunter2") {
		t.Errorf("header %q: a person needs the argument's value", text)
	}
	task := dispatcher.NewTask("forges")
	task.UUID = "u\nerror: forged by the uuid"
	if err := r.server.Publish(task); err != nil {
		t.Fatal(err)
	}
	r.dead(1)
	r.publish("panics")
	r.dead(1)
	eventually(t, "the stack of the panic is in the log", func() bool { return strings.Contains(r.log.String(), "PanicsHere") })
	if log := r.log.String(); strings.Contains(log, "hunter2") || strings.Contains(log, "\nerror: forged") {
		t.Errorf("log:\n%s", log)
	}
}

// panickingLog panics in each of its methods.
type panickingLog struct{ calls atomic.Int64 }

func (l *panickingLog) panic() {
	l.calls.Add(1)
	panic("log")
}

func (l *panickingLog) Info(...interface{})           { l.panic() }
func (l *panickingLog) Infof(string, ...interface{})  { l.panic() }
func (l *panickingLog) Debug(...interface{})          { l.panic() }
func (l *panickingLog) Debugf(string, ...interface{}) { l.panic() }
func (l *panickingLog) Error(...interface{})          { l.panic() }
func (l *panickingLog) Errorf(string, ...interface{}) { l.panic() }

func TestALogThatPanicsHarmsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := &panickingLog{}
		back := make(chan struct{}, 1)
		r := newRig(t, withQueue, plainOutbox, func(c *dispatcher.ServerConfig) {
			c.Logger, c.DebugMode = log, true
			c.Retry = &dispatcher.RetryPolicy{MaxAttempts: 2, InitialInterval: time.Millisecond}
			c.Hooks.Reconnected = func(dispatcher.ConnectionEvent) { back <- struct{}{} }
			c.Hooks.Started = func(dispatcher.StartEvent) { panic("hook") }
		})
		ran := make(chan string, 10)
		r.worker("w", tasks{
			"fails":  fn(func() error { ran <- "fails"; return errors.New("x") }),
			"panics": fn(func() { ran <- "panics"; panic("task") }),
			"fine":   fn(func() { ran <- "fine" }),
		}, limit(1))
		r.publish("fails")
		r.publish("panics")
		r.publish("unknown")
		for range 4 { // two attempts each
			wait(t, ran, "attempt")
		}
		r.dead(2)
		r.chaos.Kill()
		wait(t, back, "reconnect")
		down(r, true)
		kept(t, "publish", r.server.Publish(dispatcher.NewTask("fine")))
		up(r)
		if name := wait(t, ran, "task"); name != "fine" {
			t.Errorf("%q ran", name)
		}
		within(t, patience, "Close", r.server.Close)
		if log.calls.Load() < 8 {
			t.Errorf("the log was called %d times, want at least 8", log.calls.Load())
		}
	})
}
