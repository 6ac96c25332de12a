package rabbitmq

import "testing"

// A session with as many workers as it has room for can still notice late delays.
func TestProbesTakeNoPlaceOfAWorker(t *testing.T) {
	t.Parallel()
	c := newChannels(2047)
	probes := probeSink + ".session"
	workers := 0
	for range 2 {
		for c.consumer("q") == nil {
			workers++
		}
		if workers != 1966 {
			t.Fatalf("room for %d workers, want 1,966 as docs/rabbitmq.md says", workers)
		}
		if err := c.consumer(probes); err != nil {
			t.Errorf("the probes: %v", err)
		}
		c.give(probes, true)
		c.give("q", true)
		workers--
	}
}
