package systemtest_test

import (
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// node is a RabbitMQ node that belongs to the test, which may configure, alarm and kill it.
type node struct {
	t       *testing.T
	url     *url.URL
	ctl     string
	scripts func(verb string) string // scripts/brokers.sh for this node
}

// afterKill holds the settings of a node that is started again. A message that is due while the node boots finds no
// queue, and is tried again after this time. The default is three minutes.
const afterKill = "[{rabbit,[{dead_letter_worker_publisher_confirm_timeout,5000}]}]."

// newNode starts a node, or skips the test.
func newNode(t *testing.T) *node {
	t.Helper()
	if os.Getenv("DISPATCHER_TEST_NODES") != "1" {
		t.Skip("needs DISPATCHER_TEST_NODES=1, and starts a RabbitMQ of its own")
	}
	dir, settings := t.TempDir(), ""
	n := &node{t: t, scripts: func(verb string) string {
		cmd := exec.Command("../../scripts/brokers.sh", verb, dir)
		cmd.Env = append(os.Environ(), "DISPATCHER_AMQP_CON=", "DISPATCHER_BROKERS_ERL="+settings)
		settings = afterKill
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("brokers.sh %s: %v\n%s", verb, err, stderr.String())
		}
		return string(out)
	}}
	t.Cleanup(func() { n.scripts("stop") })
	for line := range strings.Lines(n.scripts("start")) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), "="); name {
		case "DISPATCHER_AMQP_CON":
			n.url, _ = url.Parse(value)
		case "DISPATCHER_RABBITMQCTL":
			n.ctl = value
		}
	}
	return n
}

// run calls rabbitmqctl and returns its output.
func (n *node) run(args ...string) string {
	n.t.Helper()
	out, err := exec.Command(n.ctl, args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("rabbitmqctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// alarm makes the node believe that it is short of memory, or ends that.
func (n *node) alarm(on bool) {
	n.t.Helper()
	n.run("set_vm_memory_high_watermark", map[bool]string{true: "0.00001", false: "0.4"}[on])
}

// pid returns the node's process id.
func (n *node) pid() int {
	n.t.Helper()
	pid, err := strconv.Atoi(strings.Trim(strings.TrimSpace(n.run("eval", "os:getpid().")), `"`))
	if err != nil || pid < 2 {
		n.t.Fatalf("invalid process id %d: %v", pid, err)
	}
	return pid
}

// kill ends the node without warning, as a power failure does.
func (n *node) kill(pid int) {
	n.t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
}

var queueLine = regexp.MustCompile(`(?m)^(\S+)\s+(\d+)$`)

// queues returns how many messages are in each queue, ready or not.
func (n *node) queues() map[string]int {
	n.t.Helper()
	all := map[string]int{}
	for _, line := range queueLine.FindAllStringSubmatch(n.run("-q", "--no-table-headers", "list_queues", "name", "messages"), -1) {
		all[line[1]], _ = strconv.Atoi(line[2])
	}
	return all
}

// hurry makes the node deliver now what found no route while it booted and had not read all bindings yet. Otherwise it
// tries again after three minutes.
func (n *node) hurry() {
	n.t.Helper()
	n.run("eval", "[gen_server:cast(P, settle_timeout) || {_, P, _, _} <- supervisor:which_children(rabbit_fifo_dlx_sup)].")
}

// control runs rabbitmqctl.
func control(t testing.TB, ctl string, args ...string) {
	t.Helper()
	if out, err := exec.Command(ctl, args...).CombinedOutput(); err != nil {
		t.Errorf("rabbitmqctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// unsettled returns how many deliveries from a queue are not settled, as the node counts them.
func unsettled(t *testing.T, queue string) int {
	t.Helper()
	ctl := controller(t)
	out, err := exec.Command(ctl, "-q", "--no-table-headers", "list_queues", "name", "messages_unacknowledged").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range queueLine.FindAllStringSubmatch(string(out), -1) {
		if line[1] == queue {
			n, _ := strconv.Atoi(line[2])
			return n
		}
	}
	t.Fatalf("the node has no queue %s", queue)
	return 0
}

// controller returns the path of the node's rabbitmqctl, or skips the test.
func controller(t *testing.T) string {
	t.Helper()
	ctl := os.Getenv("DISPATCHER_RABBITMQCTL")
	if os.Getenv("DISPATCHER_TEST_NODES") != "1" || ctl == "" {
		t.Skip("needs DISPATCHER_TEST_NODES=1 and DISPATCHER_RABBITMQCTL, as well as DISPATCHER_AMQP_CON, to use rabbitmqctl on that node")
	}
	return ctl
}

// suspend makes a queue stop answering until the test ends.
func suspend(t *testing.T, queue string) {
	t.Helper()
	ctl := os.Getenv("DISPATCHER_RABBITMQCTL")
	if ctl == "" || os.Getenv("DISPATCHER_TEST_NODES") != "1" {
		t.Skip("needs DISPATCHER_TEST_NODES=1 and DISPATCHER_RABBITMQCTL, as well as DISPATCHER_AMQP_CON, to suspend a queue of that node")
	}
	pid := `{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"` + queue + `">>)), P = amqqueue:get_pid(Q), sys:`
	control(t, ctl, "eval", pid+`suspend(P).`)
	t.Cleanup(func() { control(t, ctl, "eval", pid+`resume(P).`) })
}
