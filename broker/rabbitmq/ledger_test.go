package rabbitmq

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// What the broker does with the frames must be what was asked: acked are exactly the tags that were to be acked, and none
// is acked twice, which would close the channel.
func TestLedgerAcksWhatWasAskedAndNothingElse(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var g ledger
		var unsettled []uint64 // at the broker
		var next uint64
		for range rapid.IntRange(1, 30).Draw(t, "rounds") {
			for range rapid.IntRange(0, 8).Draw(t, "delivered") {
				next++
				unsettled = append(unsettled, next)
			}
			var acks, keep []uint64
			for _, tag := range rapid.Permutation(unsettled).Draw(t, "order") {
				switch rapid.IntRange(0, 3).Draw(t, "verdict") {
				case 0:
					keep = append(keep, tag)
				case 1:
					g.note(tag) // released
				default:
					acks = append(acks, tag)
				}
			}
			open := slices.Concat(acks, keep)
			upTo, singles := g.settle(slices.Clone(acks))
			acked := slices.Clone(singles)
			if upTo > 0 {
				if !slices.Contains(open, upTo) {
					t.Fatalf("everything up to %d, which is not unsettled", upTo)
				}
				for _, tag := range open {
					if tag <= upTo {
						acked = append(acked, tag)
					}
				}
			}
			slices.Sort(acked)
			slices.Sort(acks)
			if !slices.Equal(acked, acks) {
				t.Fatalf("acked %v, asked %v", acked, acks)
			}
			unsettled = keep
			if len(unsettled) == 0 && len(g.above) > 0 {
				t.Fatalf("all is settled, %d tags are remembered", len(g.above))
			}
		}
	})
}
