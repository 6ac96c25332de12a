package systemtest_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

var clusterFull = flag.Bool("cluster.full", false, "run all scenarios of TestCluster and enforce their time limits")

// scenario is one way to break a cluster under load.
type scenario struct {
	name  string
	short bool   // run even without -cluster.full
	kind  string // the type of the queues
	query string // the query of the clients' URLs
	// entries is the capacity of the outbox. 0 means no limit.
	entries int
	run     func(c *cluster, l *load, m *member)
}

// promised is how soon publishing and running must resume after a node was killed, while a majority is up.
const promised = 2 * time.Second

// settled is longer than the time after which a server's connection counts as stable.
const settled = 6 * time.Second

var scenarios = []scenario{
	{name: "leader killed, then clients cut off from the next", short: true, kind: "quorum", run: func(c *cluster, l *load, m *member) {
		m.kill()
		l.watch("killed", 8*time.Second, promised)
		m.start()
		l.watch("back", 5*time.Second, promised)
		next := c.leader(m, l.name)
		next.proxy.Refuse(true)
		next.proxy.Cut()
		l.watch("cut off", 5*time.Second, promised)
		next.proxy.Refuse(false)
		l.watch("reachable", 3*time.Second, promised)
	}},
	{name: "leader killed three times", kind: "quorum", run: func(c *cluster, l *load, m *member) {
		for range 3 {
			m.kill()
			l.watch("killed", settled, promised)
			m.start()
			l.watch("back", settled, promised)
			m = c.leader(m, l.name)
		}
	}},
	{name: "leader stopped gracefully", kind: "quorum", run: func(c *cluster, l *load, m *member) {
		began := time.Now()
		m.stop()
		pause(l.t.Context(), 8*time.Second)
		l.since("stopped", began, promised)
		m.start()
		l.watch("back", 5*time.Second, promised)
	}},
	{name: "leader frozen", kind: "quorum", query: "heartbeat=2", run: func(c *cluster, l *load, m *member) {
		m.freeze()
		l.watch("frozen", 25*time.Second, 0)
		m.thaw()
		l.watch("thawed", 10*time.Second, 0)
	}},
	// With pause_minority, a node that the others gave up while it was frozen does not pause when it thaws. It keeps
	// running alone until it is restarted.
	{name: "leader frozen until it is given up, thawed, and restarted", kind: "quorum", query: "heartbeat=2", run: func(c *cluster, l *load, m *member) {
		c.giveUpAfter(15 * time.Second)
		m.freeze()
		l.watch("frozen", 40*time.Second, 35*time.Second) // an unanswered publish ends after its timeout of 30 s
		m.thaw()
		l.watch("thawed", 5*time.Second, 0)
		m.kill()
		m.start()
		c.giveUpAfter(time.Minute)
		l.watch("restarted", settled, 0)
	}},
	{name: "links cut while a node without leaders is frozen", kind: "quorum", run: func(c *cluster, l *load, m *member) {
		frozen := c.other(m)
		c.only(m)
		frozen.freeze()
		m.proxy.Cut()
		l.watch("frozen", 25*time.Second, 0)
		frozen.thaw()
		l.watch("thawed", 5*time.Second, 0)
	}},
	{name: "leader split off", kind: "quorum", run: func(c *cluster, l *load, m *member) {
		m.split()
		if c.pauses {
			l.watch("split", 10*time.Second, promised)
		} else { // its clients must notice by themselves
			l.watch("split", time.Minute, 0)
		}
		m.heal()
		l.watch("healed", 10*time.Second, promised)
	}},
	{name: "cables pulled to two nodes while the link to the third is cut", kind: "quorum", run: func(c *cluster, l *load, m *member) {
		for _, other := range c.members {
			other.proxy.Stall(other != m)
		}
		for range 5 {
			m.proxy.Cut()
			l.watch("cut", settled, promised)
		}
	}},
	{name: "two of three killed", kind: "quorum", entries: 200, run: func(c *cluster, l *load, m *member) {
		m.kill()
		c.other(m).kill()
		l.watch("no majority", 10*time.Second, 0)
		m.start()
		l.watch("majority", 10*time.Second, 0)
	}},
	{name: "leader killed, and the next one while the first starts", kind: "quorum", run: func(c *cluster, l *load, m *member) {
		m.kill()
		l.watch("killed", settled, promised)
		next := c.leader(c.other(m), l.name)
		started := make(chan struct{})
		go func() { defer close(started); m.start() }()
		pause(l.t.Context(), 2*time.Second)
		next.kill()
		<-started
		l.watch("the next killed", settled, 0)
		next.start()
		l.watch("back", settled, promised)
	}},
	{name: "split under an outbox that fills, and the other nodes' leader killed after it", kind: "quorum", entries: 200, run: func(c *cluster, l *load, m *member) {
		c.only(m) // clients cannot leave the node that pauses
		m.split()
		l.watch("split", 10*time.Second, 0)
		c.only(nil)
		l.watch("reachable", 5*time.Second, 0)
		m.heal()
		eventually(l.t, "the cluster is healed", func() bool {
			out, _ := m.tryEval(`io:format("~b", [length(rabbit_nodes:all_running())]).`)
			return out == "3"
		})
		c.leader(m, l.name).kill()
		l.watch("killed", settled, 0) // no limit: the healed node may not have its replicas yet
	}},
	{name: "worker shut down and another started while the leader is away", kind: "quorum", run: func(c *cluster, l *load, m *member) {
		m.kill()
		within(l.t, patience, "Shutdown", func() { l.leave(second) })
		l.work("worker 3")
		l.work("worker 4")
		pause(l.t.Context(), settled)
		m.start()
		within(l.t, patience, "Shutdown", func() { l.leave("worker 3") })
		c.leader(m, l.name).kill()
		within(l.t, patience, "Shutdown", func() { l.leave("worker 4") })
		pause(l.t.Context(), settled)
	}},
	{name: "clients at a node that is split off and does not pause", kind: "quorum", run: func(c *cluster, l *load, m *member) {
		handling := func(how string) {
			for _, m := range c.members {
				m.eval("application:set_env(rabbit, cluster_partition_handling, " + how + ").")
			}
		}
		handling("ignore")
		m.split()
		l.watch("split", time.Minute, 0)
		handling("pause_minority")
		m.kill() // only a restart heals a split that was ignored
		m.start()
		l.watch("mended", settled, 0)
	}},
	{name: "host of a classic queue killed", short: true, kind: "", run: func(c *cluster, l *load, m *member) {
		m.kill()
		l.watch("killed", 8*time.Second, 0)
		m.start()
		l.watch("back", 10*time.Second, 0)
	}},
	{name: "host of a classic queue killed, clients at another node", kind: "", run: func(c *cluster, l *load, m *member) {
		c.only(c.other(m))
		m.proxy.Cut()
		l.watch("moved", settled, promised)
		m.kill()
		l.watch("killed", 8*time.Second, 0)
		c.other(m).proxy.Cut()
		l.watch("cut", 8*time.Second, 0)
		m.start()
		l.watch("back", 10*time.Second, 0)
	}},
	{name: "host of a classic queue stopped gracefully", kind: "", run: func(c *cluster, l *load, m *member) {
		m.stop()
		l.watch("stopped", 8*time.Second, 0)
		m.start()
		l.watch("back", 10*time.Second, 0)
	}},
}

// No confirmed task is lost and none runs early, whatever happens to one of three nodes. Publishing and running go on.
func TestCluster(t *testing.T) {
	c := newCluster(t)
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with: go test -race -run '^%s$' -chaos.seed %d -cluster.full ./internal/systemtest", t.Name(), seed)
	for i, s := range scenarios {
		if !s.short && !*clusterFull {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			c.at(t)
			m := c.members[(int(seed%3)+i)%3]
			l := newLoad(t, c, m, s, seed)
			l.watch("calm", settled, 0)
			s.run(c, l, m)
			c.whole()
			l.audit()
		})
	}
	if *clusterFull {
		t.Run("servers and workers that start while a classic queue is away", func(t *testing.T) {
			c.at(t)
			startsWhileAQueueIsAway(t, c, c.members[seed%3])
		})
	}
}

// A classic queue whose node is away is not a configuration error. Servers and workers that need it wait.
func startsWhileAQueueIsAway(t *testing.T, c *cluster, host *member) {
	r := placeOn(t, host.url)
	if err := r.declare(r.raw()); err != nil {
		t.Fatal(err)
	}
	r.proxy = c.other(host).proxy
	early := r.config()
	sender, _, err := dispatcher.NewServer(early)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sender.Close)
	host.kill()

	servers, workers := make(chan error, 1), make(chan error, 1)
	go func() {
		s, _, err := dispatcher.NewServer(r.config(r.ownQueue))
		if err == nil {
			s.Close()
		}
		servers <- err
	}()
	go func() {
		_, err := sender.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: r.name}, tasks{"n": fn(func() {})})
		workers <- err
	}()
	select {
	case err := <-servers:
		t.Errorf("NewServer returned %v while the queue was away", err)
		servers <- nil
	case err := <-workers:
		t.Errorf("NewWorker returned %v while the queue was away", err)
		workers <- nil
	case <-time.After(5 * time.Second):
	}
	host.start()
	if err := wait(t, servers, "return of NewServer"); err != nil {
		t.Errorf("NewServer: %v", err)
	}
	if err := wait(t, workers, "return of NewWorker"); err != nil {
		t.Errorf("NewWorker: %v", err)
	}
}

// The cluster kit's operations on nodes have the effects that the scenarios rely on.
func TestCluster_Kit(t *testing.T) {
	if !*clusterFull {
		t.Skip("needs -cluster.full")
	}
	c := newCluster(t)
	one, two, three := c.members[0], c.members[1], c.members[2]
	r := placeOn(t, two.url)
	r.serve(r.ownQueue, func(c *dispatcher.ServerConfig) { c.QueueType = "quorum" })
	c.lead(three)
	if m := c.leader(one, r.name); m != three {
		t.Errorf("leader is %s, want the third node", m.name)
	}
	three.kill()
	eventually(t, "another node leads", func() bool { return c.leader(one, r.name) != three })
	c.whole()
	one.split()
	eventually(t, "the node is alone, and pauses if it is configured to", func() bool {
		out, _ := one.tryEval(`io:format("~p ~p", [nodes(), rabbit:is_running()]).`)
		return out == fmt.Sprintf("[] %t", !c.pauses)
	})
	c.whole()
	one.stop()
	c.whole()
	c.lead(one)
	one.freeze()
	eventually(t, "another node leads", func() bool { return c.leader(two, r.name) != one })
	c.whole()
}
