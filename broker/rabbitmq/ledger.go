package rabbitmq

import (
	"slices"
	"sort"
)

// ledger knows which deliveries of a channel have been settled, to find out when one frame can ack, or release, several.
//
// "Everything up to this tag" settles whatever the broker holds as unsettled there. The tags of a channel are 1, 2, 3, …
// without a gap, so it is right exactly when each of them has been settled before or is to be settled so now. One that is still
// being worked on is neither, and bars the way. Fewer frames are not only cheaper: with a quorum queue, RabbitMQ forgets
// settlements that it has taken and not yet passed on when the channel is closed, beyond some thirty.
//
// It grows with the deliveries that are open at the same time, and not with those settled beside one that stays open for long.
type ledger struct {
	floor uint64 // all tags up to this one are settled
	above []span // settled tags above it, in order; open ones are between any two, so there are never more spans than open tags
}

// span is tags without a gap, both ends included.
type span struct{ first, last uint64 }

// note enters a settled tag.
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

// settle enters tags that are to be acked, or released, and returns how to say so: everything up to a tag (0 = not at all), and the rest one
// by one.
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
