//go:build !race

package dispatcher

import (
	"testing"
)

// The race detector allocates, too, so `make allocs` runs this test without it. A larger number is a decision.
func TestAllocationsOfEachStep(t *testing.T) {
	task := NewTask("bench_noop", "0123456789abcdef0123456789abcdef", 123456)
	task.UUID = "8d4c2d1e-6f1b-4c39-9d5a-0123456789ab"
	h, m := benchHandler(t)
	for name, c := range map[string]struct {
		want float64
		step func() error
	}{
		"make a task": {2, func() error { _ = NewTask("bench_noop", "x", 1); return nil }},
		"make a uuid": {1, func() error { _ = newUUID(); return nil }},
		"encode":      {1, func() error { _, err := encodeTask(task); return err }},
		// The parameters together, and the text of one.
		"decode, bind and call": {2, func() error { return handle(h, m) }},
	} {
		if got := testing.AllocsPerRun(1000, func() {
			if err := c.step(); err != nil {
				t.Fatal(err)
			}
		}); got > c.want {
			t.Errorf("%s: %v allocations, want %v", name, got, c.want)
		}
	}
}
