package engine

import (
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// Senders of gofort/dispatcher write neither message id nor type. The body has both.
func TestACopyTakesItsIdentityFromTheTaskIfTheMessageHasNone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ id, uuid, want string }{
		{"from message", "from body", "from message"},
		{"", "from body", "from body"},
		{"", "", ""},
		{strings.Repeat("x", 256), "from body", ""},
		{"", strings.Repeat("x", 256), ""},
	} {
		call := &Call{Delivery: broker.Delivery{Message: broker.Message{ID: c.id}}, ID: c.uuid, Name: "mail"}
		m := call.messageFor(verdict.DeadLetter(verdict.ReasonFailed, verdict.Outcome{Text: "no"}), "w", time.Now())
		if c.want == "" && len(m.ID) != 36 || c.want != "" && m.ID != c.want {
			t.Errorf("id %.20q, uuid %.20q: copy has %.50q", c.id, c.uuid, m.ID)
		}
		if m.Type != "mail" {
			t.Errorf("type %q", m.Type)
		}
	}
}

// The library's own headers must not make a message too large to be settled.
func TestACopyCanDoWithMostOfItsLog(t *testing.T) {
	t.Parallel()
	c := &Call{Delivery: broker.Delivery{Message: broker.Message{ID: "u", Headers: map[string]any{"user": "x"}}}}
	m := c.messageFor(verdict.Verdict{Action: verdict.ToDeadLetters, Reason: verdict.ReasonFailed, Made: record.Attempt{Number: 1}, Outcome: verdict.Outcome{Text: strings.Repeat("x", 1000)}}, "w", time.Now())
	slimDown(m.Headers)
	if log := record.Log(m.Headers); len(log) != 1 || log[0].Number != 1 || log[0].Error != "" || len(m.Headers[record.HeaderError].(string)) > 300 || m.Headers["user"] != "x" || m.Headers[record.HeaderReason] != verdict.ReasonFailed {
		t.Errorf("headers %v", m.Headers)
	}
}

func TestALogOfSomebodyElsesIsDoneWithout(t *testing.T) {
	t.Parallel()
	h := map[string]any{record.HeaderLog: strings.Repeat("x", 130_000), "user": "x"}
	if slimDown(h); h[record.HeaderLog] != nil || h["user"] != "x" {
		t.Errorf("%d headers left", len(h))
	}
}
