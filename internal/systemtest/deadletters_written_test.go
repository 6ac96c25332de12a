package systemtest_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/seed-416683c9/dispatcher"
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
			t.Errorf("health %+v, want the worker reported as stuck", h)
		}
		if q := r.inspect("jobs"); q.Ready != 0 || q.Unsettled != 1 || ran.Load() != 1 {
			t.Errorf("queue %+v, ran %d times; want the task unsettled, and one run", q, ran.Load())
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
			t.Errorf("Close took %v, want about 30 s", took)
		}
		if q := r.inspect("jobs"); q.Ready != 1 || q.Unsettled != 0 {
			t.Errorf("queue %+v, want the task released", q)
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
		if n := strings.Count(r.log.String(), "cannot write the verdict"); n > 3 {
			t.Errorf("%d tries to write a verdict of a lost delivery", n)
		}
		if w := r.server.Health(t.Context()).Workers[0]; w.Stuck != 0 {
			t.Errorf("health %+v: want nothing stuck", w)
		}
	})
}
