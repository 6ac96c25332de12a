package dispatcher_test

import (
	"strings"
	"testing"

	"github.com/seed-416683c9/dispatcher"
)

// What the cluster kit does to nodes has the effect that the scenarios count on.
func TestCluster_Kit(t *testing.T) {
	c := newCluster(t)
	one, two, three := c.members[0], c.members[1], c.members[2]
	r := placeOn(t, two.url)
	r.serve(r.ownQueue, func(c *dispatcher.ServerConfig) { c.QueueType = "quorum" })
	c.lead(three)
	if m := c.leader(one, r.name); m != three {
		t.Errorf("%s leads", m.name)
	}
	three.kill()
	eventually(t, "another node leads", func() bool { return c.leader(one, r.name) != three })
	c.whole()
	one.split()
	eventually(t, "the node alone pauses", func() bool {
		out, _ := one.tryEval(`io:format("~p", [rabbit:is_running()]).`)
		return strings.Contains(out, "false")
	})
	c.whole()
	one.stop()
	c.whole()
	c.lead(one)
	one.freeze()
	eventually(t, "another node leads", func() bool { return c.leader(two, r.name) != one })
	c.whole()
}
