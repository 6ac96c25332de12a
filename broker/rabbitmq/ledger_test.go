package rabbitmq

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The frames must make the broker ack exactly the given tags. They must ack none of them twice, which would close the
// channel.
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
					t.Fatalf("acks everything up to %d, which is not unsettled", upTo)
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
				t.Fatalf("all is settled, but %d tags are remembered", len(g.above))
			}
		}
	})
}

// The ledger gives the same frames as one that keeps every tag. It remembers at most one span for each open tag.
func TestLedgerSaysTheSameAsOneThatKeepsEveryTag(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var g ledger
		plain := make(map[uint64]bool)
		floor := uint64(0)
		note := func(tag uint64) {
			for plain[tag] = true; plain[floor+1]; floor++ {
			}
		}
		var open []uint64
		var next uint64
		for range rapid.IntRange(1, 60).Draw(t, "rounds") {
			for range rapid.IntRange(0, 5).Draw(t, "delivered") {
				next++
				open = append(open, next)
			}
			n := rapid.IntRange(0, len(open)).Draw(t, "settled")
			tags := rapid.Permutation(open).Draw(t, "order")[:n]
			open = slices.DeleteFunc(open, func(tag uint64) bool { return slices.Contains(tags, tag) })

			if n == 1 && rapid.Bool().Draw(t, "by itself") {
				note(tags[0])
				g.note(tags[0])
			} else {
				sorted := slices.Sorted(slices.Values(tags))
				for _, tag := range sorted {
					note(tag)
				}
				var wantUpTo uint64
				wantSingles := sorted
				if k, _ := slices.BinarySearch(sorted, floor+1); k > 1 {
					wantUpTo, wantSingles = sorted[k-1], sorted[k:]
				}
				upTo, singles := g.settle(tags)
				if upTo != wantUpTo || !slices.Equal(singles, wantSingles) {
					t.Fatalf("up to %d and %v, want %d and %v", upTo, singles, wantUpTo, wantSingles)
				}
			}
			if g.floor != floor {
				t.Fatalf("floor %d, want %d", g.floor, floor)
			}
			if len(g.above) > len(open) {
				t.Fatalf("%d open tags, %d spans: %v", len(open), len(g.above), g.above)
			}
			g.note(rapid.Uint64Range(0, floor).Draw(t, "again")) // changes nothing
		}
	})
}

func TestLedgerDoesNotGrowBesideAnOpenTag(t *testing.T) {
	t.Parallel()
	const n, batch = 10_000_000, 4
	var g ledger
	tags := make([]uint64, batch)
	for first := uint64(2); first < n; first += batch { // tag 1 stays open
		for i := range tags {
			tags[i] = first + uint64(batch-1-i)
		}
		if upTo, singles := g.settle(tags); upTo != 0 || len(singles) != batch {
			t.Fatalf("settles up to %d and %v beside the open tag 1", upTo, singles)
		}
	}
	if len(g.above) != 1 || cap(g.above) > 16 {
		t.Errorf("remembers %d spans, with room for %d", len(g.above), cap(g.above))
	}
	if g.note(1); len(g.above) != 0 || g.floor < n {
		t.Errorf("all is settled, but the ledger remembers up to %d and %v", g.floor, g.above)
	}
}

// BenchmarkLedger measures the cost of one settlement: in the order of delivery, beside a tag that is never settled,
// and in any order within a window.
func BenchmarkLedger(b *testing.B) {
	for _, c := range []struct {
		name   string
		open   uint64 // how many of the first tags stay open
		window int    // how many tags are settled in any order among each other
	}{{"in order", 0, 1}, {"beside one", 1, 1}, {"window of 100", 1, 100}, {"window of 2000", 1, 2000}, {"window of 65535", 1, 65535}} {
		b.Run(c.name, func(b *testing.B) {
			var g ledger
			random := rand.New(rand.NewPCG(1, 2))
			order := make([]uint64, c.window)
			for i := range order {
				order[i] = c.open + uint64(i) + 1
			}
			next := c.open + uint64(c.window)
			tags := make([]uint64, 1)
			b.ReportAllocs()
			for b.Loop() {
				i := random.IntN(c.window)
				tags[0] = order[i]
				next++
				order[i] = next
				g.settle(tags)
			}
		})
	}
}
