package rabbitmq

import (
	"slices"
	"sort"
)

// ledger records which deliveries of a channel are settled, to find out when one frame can ack, or release, several.
//
// "Everything up to this tag" settles all the deliveries up to there that the broker holds as unsettled. The tags of a
// channel are 1, 2, 3, … without a gap. So that frame is right exactly when each of them has been settled before or is
// to be settled the same way now. An open delivery prevents it. Fewer frames are not only cheaper: when a channel is
// closed, RabbitMQ forgets settlements for a quorum queue that it has taken and not yet passed on, beyond some thirty.
//
// Its size depends on the deliveries that are open at the same time, not on those settled while one stays open for
// long.
type ledger struct {
	floor uint64 // all tags up to this one are settled
	// Settled tags above it, in order; open ones are between any two, so there are never more spans than open tags.
	above []span
}

// span is a range of tags without a gap, both ends included.
type span struct{ first, last uint64 }

// note records a settled tag.
func (g *ledger) note(tag uint64) {
	if tag <= g.floor {
		return
	}
	if tag == g.floor+1 {
		g.floor = tag
		if len(g.above) > 0 && g.above[0].first == tag+1 {
			g.floor = g.above[0].last
			g.above = slices.Delete(g.above, 0, 1)
		}
		return
	}
	// The first span that ends right before the tag, or later.
	i := sort.Search(len(g.above), func(i int) bool { return g.above[i].last+1 >= tag })
	switch {
	case i == len(g.above) || tag+1 < g.above[i].first:
		g.above = slices.Insert(g.above, i, span{tag, tag})
	case tag+1 == g.above[i].first:
		g.above[i].first = tag
	case tag == g.above[i].last+1:
		g.above[i].last = tag
		if i+1 < len(g.above) && g.above[i+1].first == tag+1 {
			g.above[i].last = g.above[i+1].last
			g.above = slices.Delete(g.above, i+1, i+2)
		}
	}
}

// settle records tags that are to be acked, or released, and returns how to write that: everything up to a tag (0 = not
// at all), and the rest one by one.
func (g *ledger) settle(tags []uint64) (upTo uint64, singles []uint64) {
	slices.Sort(tags)
	for _, tag := range tags {
		g.note(tag)
	}
	n, _ := slices.BinarySearch(tags, g.floor+1)
	if n > 1 {
		return tags[n-1], tags[n:]
	}
	return 0, tags
}
