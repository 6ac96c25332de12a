package dispatcher

import (
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Senders of gofort/dispatcher write neither message id nor type; the body has both.
func TestACopyTakesItsIdentityFromTheTaskIfTheMessageHasNone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ id, uuid, want string }{
		{"from message", "from body", "from message"},
		{"", "from body", "from body"},
		{"", "", ""},
		{strings.Repeat("x", 256), "from body", ""},
		{"", strings.Repeat("x", 256), ""},
	} {
		call := &call{delivery: broker.Delivery{Message: broker.Message{ID: c.id}}, uuid: c.uuid, name: "mail"}
		m := call.forwarded(deadLetter(ReasonFailed, outcome{text: "no"}), "w", time.Now())
		if c.want == "" && len(m.ID) != 36 || c.want != "" && m.ID != c.want {
			t.Errorf("id %.20q, uuid %.20q: copy has %.50q", c.id, c.uuid, m.ID)
		}
		if m.Type != "mail" {
			t.Errorf("type %q", m.Type)
		}
	}
}
