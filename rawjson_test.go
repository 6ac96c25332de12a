package dispatcher

import (
	"encoding/json"
	"testing"

	"github.com/seed-416683c9/dispatcher/internal/wire"
)

// A signature is made over bytes.
func TestARawMessageKeepsItsBytes(t *testing.T) {
	t.Parallel()
	const signed = "{ \"b\": \"<&>\\u0061\u2028\",\n\t\"a\" : [1.0, 1e2,{}]}"
	for _, raw := range []string{signed, " \r\n\t" + signed + "\n", "1.50", `"<"`, "null"} {
		body, err := encodeTask(&Task{Name: "n", Args: Args(json.RawMessage(raw))})
		if err != nil {
			t.Fatal(err)
		}
		plan, err := newCallPlan("n", func(json.RawMessage) {}, false)
		if err != nil {
			t.Fatal(err)
		}
		task, err := wire.Decode(body)
		if err != nil {
			t.Fatal(err)
		}
		bound, err := plan.bind(task.Args)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := string(bound.in[0].Bytes()), string(wire.TrimSpace([]byte(raw))); got != want {
			t.Errorf("%q arrived as %q", want, got)
		}
	}
}
