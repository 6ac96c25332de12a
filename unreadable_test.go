package dispatcher_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

// A message whose headers its session could not read is never run: how often it was tried, and until when it may run, is not known.
func TestUnreadableHeadersMakeADeadLetter(t *testing.T) {
	t.Parallel()
	raw := []byte{1, 2, 3}
	h := hooked{arrives: func(d *broker.Delivery) {
		if strings.HasPrefix(d.ID, "bad") {
			d.Unreadable, d.Headers = "too deep", map[string]any{broker.RawHeaders: raw}
		}
	}}
	died := make(chan dispatcher.DeadLetterEvent, 9)
	r := newRig(t, withHooks(&h), func(c *dispatcher.ServerConfig) {
		c.Hooks.DeadLettered = func(e dispatcher.DeadLetterEvent) { died <- e }
	})
	ran := make(chan string, 9)
	r.worker("w", tasks{"n": {Function: func(id string) { ran <- id }, TaskUUIDAsFirstArg: true}})
	for _, id := range []string{"good1", "bad", "good2"} {
		r.publishRaw("jobs", broker.Message{ID: id, Type: "n", Body: fmt.Appendf(nil, `{"uuid":%q,"name":"n","args":[]}`, id), Headers: map[string]any{
			"mine": true, "x-dispatcher-expires-at": time.Now().Add(time.Hour).Format(time.RFC3339Nano),
		}})
	}
	r.publishRaw("jobs", broker.Message{ID: "bad body", Body: []byte("?")})
	for range 2 {
		if id := wait(t, ran, "task"); id == "bad" {
			t.Error("it ran")
		}
	}
	for range 2 {
		e := wait(t, died, "dead letter")
		if e.Reason != dispatcher.ReasonMalformed || !errors.Is(e.Err, dispatcher.ErrMalformed) {
			t.Errorf("%+v", e)
		}
	}
	letters, err := r.server.DeadLetters("jobs").List(t.Context(), dispatcher.DeadLetterFilter{UUID: "bad"}, dispatcher.Page{})
	if err != nil || len(letters) != 1 {
		t.Fatalf("%v, %v", letters, err)
	}
	l := letters[0]
	if got, _ := l.Headers[dispatcher.RawHeaders].([]byte); l.Name != "n" || l.Error != "malformed task: its headers cannot be read: too deep" || string(got) != string(raw) || len(l.Headers) != 1 {
		t.Errorf("%+v", l)
	}
}
