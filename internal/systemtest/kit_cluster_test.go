package systemtest_test

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker/brokertest"
)

// cluster is three RabbitMQ nodes that belong to the test and form one cluster. Clients reach each node through a
// proxy.
type cluster struct {
	t       *testing.T
	members []*member
	pauses  bool // pause_minority works; it does not since RabbitMQ 4.3, which keeps its metadata in Khepri
}

// member is one node of a cluster. A method that fails also fails the test.
type member struct {
	t     *testing.T
	dir   string // the node's directory for scripts/brokers.sh
	peer  string // the dir of the first node, "" for the first
	url   *url.URL
	state string // where scripts/brokers.sh keeps the node's files
	name  string // its Erlang name
	proxy *brokertest.Proxy
}

// These are the settings that docs/rabbitmq.md asks an operator to use.
const (
	clusterConf = "cluster_partition_handling = pause_minority"
	clusterErl  = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 10000}]}]."
)

// newCluster starts a cluster, or skips the test. The nodes end with the test.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	if os.Getenv("DISPATCHER_TEST_NODES") != "1" {
		t.Skip("needs DISPATCHER_TEST_NODES=1, and starts three RabbitMQ nodes of its own")
	}
	c := &cluster{t: t}
	dir := t.TempDir()
	for i := range 3 {
		m := &member{t: t, dir: filepath.Join(dir, strconv.Itoa(i))}
		if i > 0 {
			m.peer = c.members[0].dir
		}
		c.members = append(c.members, m)
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			m.script("stop")
		}
	})
	c.members[0].start()
	var others sync.WaitGroup
	for _, m := range c.members[1:] {
		others.Go(m.start)
	}
	others.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, m := range c.members {
		m.proxy = brokertest.NewProxy(t, m.url.Host)
	}
	c.whole()
	out, err := c.members[0].tryEval(`io:format("~p", [rabbit_khepri:is_enabled()]).`)
	c.pauses = err != nil || out != "true"
	return c
}

// at makes the cluster report its failures to the subtest t, and brings all nodes back.
func (c *cluster) at(t *testing.T) {
	t.Helper()
	owner := c.t
	set := func(t *testing.T) {
		c.t = t
		for _, m := range c.members {
			m.t = t
		}
	}
	t.Cleanup(func() { set(owner) })
	set(t)
	c.whole()
}

// urls returns the URLs of all nodes through their proxies, as ServerConfig.AMQPConnectionString takes them.
func (c *cluster) urls(query string) string {
	var all []string
	for _, m := range c.members {
		all = append(all, m.through(query))
	}
	return strings.Join(all, ",")
}

// only lets clients connect to m alone. If m is nil, they may connect to all nodes.
func (c *cluster) only(m *member) {
	for _, other := range c.members {
		other.proxy.Refuse(m != nil && other != m)
	}
}

// other returns a node that is none of these.
func (c *cluster) other(not ...*member) *member {
	for _, m := range c.members {
		found := false
		for _, n := range not {
			found = found || n == m
		}
		if !found {
			return m
		}
	}
	panic("no other node")
}

// named returns the member with that Erlang name, or nil.
func (c *cluster) named(name string) *member {
	for _, m := range c.members {
		if m.name == name {
			return m
		}
	}
	return nil
}

// leader returns the node that leads a quorum queue or hosts a classic one, as the node via sees it.
func (c *cluster) leader(via *member, queue string) *member {
	c.t.Helper()
	var m *member
	eventually(c.t, "a leader of "+queue, func() bool {
		leaders, err := c.leaders(via)
		if err == nil {
			m = c.named(leaders[queue])
		}
		return m != nil
	})
	return m
}

// leaders returns the Erlang names of the nodes that lead the queues, by queue name.
func (c *cluster) leaders(via *member) (map[string]string, error) {
	all := map[string]string{}
	out, err := via.tryEval(`
		[io:format("~s ~s~n", [element(4, amqqueue:get_name(Q)), case amqqueue:get_pid(Q) of
			{Name, Node} -> case ra_leaderboard:lookup_leader(Name) of {_, Leader} -> Leader; _ -> Node end;
			Pid -> node(Pid)
		end]) || Q <- rabbit_amqqueue:list()].`)
	for line := range strings.Lines(out) {
		if queue, node, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			all[queue] = node
		}
	}
	return all, err
}

// lead makes m the leader of all quorum queues.
func (c *cluster) lead(m *member) {
	c.t.Helper()
	eventually(c.t, m.name+" leads all queues", func() bool {
		return strings.Contains(m.eval(`
			Others = [Q || Q <- rabbit_amqqueue:list(), amqqueue:get_type(Q) =:= rabbit_quorum_queue,
				ra_leaderboard:lookup_leader(element(1, amqqueue:get_pid(Q))) =/= {element(1, amqqueue:get_pid(Q)), node()}],
			[case ra_leaderboard:lookup_leader(element(1, amqqueue:get_pid(Q))) of
				undefined -> wait;
				{Name, _} = Leader -> catch ra:transfer_leadership(Leader, {Name, node()})
			end || Q <- Others],
			io:format("~b others", [length(Others)]).`), "0 others")
	})
}

// whole brings all nodes back and undoes whatever was done to them. It returns when they are one cluster and every
// queue has a leader.
func (c *cluster) whole() {
	c.t.Helper()
	for _, m := range c.members {
		if m.proxy != nil {
			m.proxy.Stall(false)
			m.proxy.Refuse(false)
		}
		if m.alive() {
			m.thaw()
		}
	}
	for _, m := range c.members {
		if !m.alive() {
			m.start()
		}
		m.heal()
	}
	for _, m := range c.members {
		eventuallyWithin(c.t, 2*patience, m.name+" sees all nodes and leaders", func() bool {
			out, err := m.tryEval(`
				Leaderless = [Q || Q <- rabbit_amqqueue:list(), amqqueue:get_type(Q) =:= rabbit_quorum_queue,
					ra_leaderboard:lookup_leader(element(1, amqqueue:get_pid(Q))) =:= undefined],
				io:format("~b up, ~b without", [length(rabbit_nodes:all_running()), length(Leaderless)]).`)
			return err == nil && strings.Contains(out, "3 up, 0 without")
		})
	}
}

// start starts the node with its existing data. It returns when the node accepts clients.
func (m *member) start() {
	for line := range strings.Lines(m.script("start")) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), "="); name {
		case "DISPATCHER_AMQP_CON":
			m.url, _ = url.Parse(value)
		case "DISPATCHER_RABBITMQCTL":
			m.state = filepath.Dir(value)
		}
	}
	files, _ := filepath.Glob(m.state + "/node/data/*.pid")
	if len(files) != 1 {
		m.t.Errorf("%s has %d pid files, want 1", m.state, len(files))
		return
	}
	m.name = strings.TrimSuffix(filepath.Base(files[0]), ".pid")
}

func (m *member) script(verb string) string {
	cmd := exec.Command("../../scripts/brokers.sh", verb, m.dir)
	cmd.Env = append(os.Environ(), "DISPATCHER_AMQP_CON=", "DISPATCHER_BROKERS_PEER="+m.peer,
		"DISPATCHER_BROKERS_CONF="+clusterConf, "DISPATCHER_BROKERS_ERL="+clusterErl)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		m.t.Errorf("brokers.sh %s: %v\n%s", verb, err, stderr.String())
	}
	return string(out)
}

// through returns the URL of the node through its proxy.
func (m *member) through(query string) string {
	u := *m.url
	u.Host, u.RawQuery = m.proxy.Addr(), query
	return u.String()
}

// pid returns the node's process id, or 0 if it does not run. The tag in its environment proves that the process
// belongs to this test.
func (m *member) pid() int {
	text, err := os.ReadFile(m.state + "/node/data/" + m.name + ".pid")
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 2 {
		return 0
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || !strings.Contains(string(environ), "DISPATCHER_BROKERS="+m.state+"\x00") {
		return 0
	}
	return pid
}

func (m *member) alive() bool { return m.pid() != 0 }

func (m *member) signal(s syscall.Signal) {
	m.t.Helper()
	pid := m.pid()
	if pid == 0 {
		m.t.Fatalf("%s is not running", m.name)
	}
	if err := syscall.Kill(pid, s); err != nil {
		m.t.Fatal(err)
	}
}

// kill ends the node without warning, as a power failure does.
func (m *member) kill() { m.t.Helper(); m.signal(syscall.SIGKILL) }

// stop ends the node gracefully, as systemd does. It returns when the process has ended.
func (m *member) stop() {
	m.t.Helper()
	pid := m.pid() // read it now, because the node removes the file before it ends
	m.signal(syscall.SIGTERM)
	eventually(m.t, m.name+" has stopped", func() bool { return syscall.Kill(pid, 0) != nil })
}

// freeze suspends the node's process until thaw.
func (m *member) freeze() { m.t.Helper(); m.signal(syscall.SIGSTOP) }
func (m *member) thaw()   { m.t.Helper(); m.signal(syscall.SIGCONT) }

// split cuts the node's links to the other nodes until heal. Clients still reach it.
func (m *member) split() {
	m.t.Helper()
	m.eval(`[begin erlang:set_cookie(N, wrong), erlang:disconnect_node(N) end || N <- rabbit_nodes:all(), N =/= node()].`)
}

// giveUpAfter makes the nodes treat a silent node as down after d, instead of net_ticktime's minute.
func (c *cluster) giveUpAfter(d time.Duration) {
	c.t.Helper()
	for _, m := range c.members {
		m.eval(fmt.Sprintf("net_kernel:set_net_ticktime(%d, 0).", int(d.Seconds())))
	}
}

func (m *member) heal() {
	m.t.Helper()
	m.eval(`[erlang:set_cookie(N, erlang:get_cookie()) || N <- rabbit_nodes:all(), N =/= node()].`)
}

// eval runs Erlang code on the node and returns its output.
func (m *member) eval(code string) string {
	m.t.Helper()
	var out string
	var err error
	eventually(m.t, m.name+" can run Erlang code", func() bool { // on a busy machine it sometimes fails to connect
		out, err = m.tryEval(code)
		return !strings.Contains(out, "erl_call: failed to connect")
	})
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", code, err, out)
	}
	return out
}

func (m *member) tryEval(code string) (string, error) {
	cmd := exec.Command(m.state+"/as-node", "erl_call", "-r", "-n", m.name, "-timeout", "30", "-fetch_stdout", "-e")
	cmd.Stdin = strings.NewReader(code + "\n") // without the newline, the Erlang form is incomplete
	text, err := cmd.CombinedOutput()
	printed, _, ok := strings.Cut(string(text), "{ok, ") // the result follows the output
	if err == nil && !ok {
		err = errors.New("no result")
	}
	return printed, err
}
