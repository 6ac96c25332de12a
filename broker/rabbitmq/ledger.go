package rabbitmq

import "slices"

// ledger knows which deliveries of a channel have been settled, to find out when one frame can ack, or release, several.
//
// "Everything up to this tag" settles whatever the broker holds as unsettled there. The tags of a channel are 1, 2, 3, …
// without a gap, so it is right exactly when each of them has been settled before or is to be settled so now. One that is still
// being worked on is neither, and bars the way. Fewer frames are not only cheaper: with a quorum queue, RabbitMQ forgets
// settlements that it has taken and not yet passed on when the channel is closed, beyond some thirty.
type ledger struct {
	floor uint64              // all tags up to this one are settled
	above map[uint64]struct{} // settled tags above it
}

// note enters a settled tag.
func (g *ledger) note(tag uint64) {
	if g.above == nil {
		g.above = make(map[uint64]struct{})
	}
	g.above[tag] = struct{}{}
	g.rise()
}

// rise moves the floor as far as it goes.
func (g *ledger) rise() {
	for {
		if _, settled := g.above[g.floor+1]; !settled {
			return
		}
		g.floor++
		delete(g.above, g.floor)
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
