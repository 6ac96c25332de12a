package rabbitmq_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// ask returns what rabbitmqctl prints.
func (n *node) ask(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(n.ctl, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("rabbitmqctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// kill ends the node as a power failure would, and starts it again.
func (n *node) kill(t testing.TB) {
	t.Helper()
	pid, err := strconv.Atoi(strings.Trim(strings.TrimSpace(n.ask(t, "eval", "os:getpid().")), `"`))
	if err != nil || pid < 2 {
		t.Fatalf("process %d, %v", pid, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.brokers("start")
}

// testLevels is the first test of the node, so nothing exists yet for delays.
func testLevels(t *testing.T, n *node) {
	// A program that sends without delays makes nothing for them.
	s := open(t, n.broker(t))
	x := uniqueName()
	if err := s.Declare(testContext(t), broker.Topology{Exchanges: []broker.Exchange{{Name: x, Kind: broker.Direct}}}); err != nil {
		t.Fatal(err)
	}
	queues := func() []string {
		return regexp.MustCompile(`dispatcher\.\S+`).FindAllString(n.ask(t, "-q", "--no-table-headers", "list_queues", "name"), -1)
	}
	if got := queues(); len(got) != 0 {
		t.Errorf("declaring an exchange made %q", got)
	}

	// All programs declare at once, as when a whole service starts.
	const programs = 8
	var wg sync.WaitGroup
	errs, sessions := make([]error, programs), make([]broker.Session, programs)
	q := uniqueName()
	for i := range programs {
		sessions[i] = open(t, n.broker(t))
		wg.Go(func() {
			errs[i] = sessions[i].Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: q}}})
		})
	}
	wg.Wait()
	t.Cleanup(func() { _ = s.Delete(testContext(t), q) })
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if got := queues(); len(got) != 1 || got[0] != broker.Undeliverable {
		t.Errorf("declaring a queue made %q", got)
	}
	began := time.Now()
	told := make(chan error, programs)
	for i, s := range sessions {
		go s.Publish(testContext(t), []broker.Message{{RoutingKey: q, ID: fmt.Sprint(i), NotBefore: time.Now().Add(time.Millisecond)}}, func(_ int, err error) { told <- err })
	}
	for range programs {
		if err := <-told; err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d programs made the levels at once in %v", programs, time.Since(began))
	if got := queues(); len(got) != 48 { // 30 levels, 16 exits, the queue of probes and that of undeliverable messages
		t.Errorf("a delay made %d queues: %q", len(got), got)
	}
	c := consume(t, s, q, programs)
	for range programs {
		if err := receive(t, c).Ack(); err != nil {
			t.Error(err)
		}
	}

	// The longest delay exceeds the 32 bits of milliseconds that Erlang's timers once had.
	longest := broker.Message{RoutingKey: q, ID: "longest", NotBefore: time.Now().Add(broker.MaxDelay)}
	published(t, s, longest)
	longest.ID, longest.NotBefore = "second longest", longest.NotBefore.Add(-time.Minute)
	published(t, s, longest)
	if info, err := s.Inspect(testContext(t), "dispatcher.delay.v2.34"); err != nil || info.Ready != 2 {
		t.Errorf("the highest level: %+v, %v, want 2", info, err)
	}
	if _, err := s.Purge(testContext(t), "dispatcher.delay.v2.34"); err != nil {
		t.Error(err)
	}
}

// Somebody deletes queues that have no consumer. The next message is returned and written again. Its lower levels are
// made again with it.
func testDeletedLevel(t *testing.T, n *node) {
	s := open(t, n.broker(t))
	q := workQueue(t, s)
	c := consume(t, s, q, 30)
	delay := func() time.Time { return time.Now().Add(100 * time.Millisecond) } // waits at the levels 6 and 5
	published(t, s, broker.Message{RoutingKey: q, ID: "0", NotBefore: delay()})
	receive(t, c)
	deleted := []string{"5", "6", "7"}
	for exit := range 16 {
		deleted = append(deleted, fmt.Sprintf("exit.%x", exit))
	}
	for _, name := range deleted {
		if err := s.Delete(testContext(t), "dispatcher.delay.v2."+name); err != nil {
			t.Fatal(err)
		}
	}
	msgs, at := make([]broker.Message, 20), delay()
	for i := range msgs {
		msgs[i] = broker.Message{RoutingKey: q, ID: fmt.Sprint(i), NotBefore: at}
	}
	published(t, s, msgs...)
	var last broker.Delivery
	for range msgs {
		last = due(t, c, at)
	}
	if err := s.Delete(testContext(t), "dispatcher.delay.v2.6"); err != nil {
		t.Fatal(err)
	}
	at = delay()
	if err := last.Retry(testContext(t), last.Forward(), time.Until(at)); err != nil {
		t.Fatal(err)
	}
	due(t, c, at)
}

// An error names the missing permission. A program that may declare nothing uses what exists.
func testDelayPermissions(t *testing.T, n *node) {
	all := open(t, n.broker(t))
	q := workQueue(t, all)
	published(t, all, broker.Message{RoutingKey: q, ID: "0", NotBefore: time.Now().Add(time.Millisecond)})
	own := regexp.QuoteMeta(q)
	for name, test := range map[string]struct{ configure, write, read, declare, publish string }{
		"all.there":   {"^$", "^" + own + `$|^dispatcher\.delay\.v2\.`, `^dispatcher\.delay\.v2\.deliver$`, "", ""},
		"no.queue":    {"^$", `^dispatcher\.`, `^dispatcher\.`, "write permission on the queue", ""},
		"no.deliver":  {"^$", "^" + own, "^$", "read permission on the exchange", "write permission on the exchange"},
		"no.levels":   {`^dispatcher\.undeliverable|^dispatcher\.delay\.v2\.(deliver|undeliverable)$`, ".*", ".*", "", ""},
		"no.bindings": {`^dispatcher\.`, "^" + own + "$", ".*", "", "write permission on the exchange"},
	} {
		if since43(t, n.url) { // a user without any right may not even look
			switch name {
			case "no.queue":
				test.declare = "configure permission on the queue"
			case "no.deliver":
				test.declare, test.publish = "configure permission", "configure permission"
			}
		}
		n.run("add_user", name, "hush")
		n.run("set_permissions", name, test.configure, test.write, test.read)
		s := open(t, n.as(t, name, ""))
		check := func(verb string, err error, want string) {
			t.Helper()
			switch {
			case want == "" && err != nil:
				t.Errorf("%s %s: %v", name, verb, err)
			case want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "dispatcher.") && !strings.Contains(err.Error(), q)):
				t.Errorf("%s %s: %v, want %q", name, verb, err, want)
			}
		}
		check("declare", s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: q}}}), test.declare)
		if s.Err() != nil {
			t.Errorf("%s: %v", name, s.Err())
		}
		err := outcomes(t, s, broker.Message{RoutingKey: q, ID: name, NotBefore: time.Now().Add(time.Hour)})[0]
		check("publish", err, test.publish)
		if err != nil && !errors.Is(err, broker.ErrRejected) || s.Err() != nil {
			t.Errorf("%s: %v, and the session: %v", name, err, s.Err())
		}
	}

	// If nothing exists and the user may make nothing, the error says so, in the same way every time.
	n.run("add_vhost", "empty")
	n.run("add_user", "newcomer", "hush")
	n.run("set_permissions", "-p", "empty", "newcomer", "^q$", ".*", ".*")
	n.run("set_permissions", "-p", "empty", "guest", ".*", ".*", ".*")
	s := open(t, n.as(t, "newcomer", "empty"))
	for range 2 {
		err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: "q"}}})
		if !errors.Is(err, broker.ErrRejected) || !strings.Contains(err.Error(), "configure permission") || !strings.Contains(err.Error(), broker.Undeliverable) {
			t.Errorf("declare: %v", err)
		}
		err = outcomes(t, s, broker.Message{RoutingKey: "q", ID: "1", NotBefore: time.Now().Add(time.Hour)})[0]
		if !errors.Is(err, broker.ErrRejected) || !strings.Contains(err.Error(), "configure permission") {
			t.Errorf("publish: %v", err)
		}
	}
	ds, err := s.TryGet(testContext(t), "q", 1)
	if len(ds) != 0 || err != nil {
		t.Error(ds, err)
	}
	fill(t, s, "q", 1)
	d := receive(t, consume(t, s, "q", 1))
	if err := d.Retry(testContext(t), d.Forward(), time.Hour); !errors.Is(err, broker.ErrRejected) || !strings.Contains(err.Error(), "configure permission") {
		t.Errorf("retry: %v", err)
	}
	// Once another program has made it, the same session can use it.
	u := *n.url
	u.Path = "/empty"
	fill(t, s, "q", 1)
	published(t, open(t, newBroker(t, rabbitmq.Config{URLs: []string{u.String()}})), broker.Message{RoutingKey: "q", ID: "2", NotBefore: time.Now().Add(time.Hour)})
	if err := d.Retry(testContext(t), d.Forward(), time.Hour); err != nil {
		t.Errorf("retry: %v", err)
	}
}

// The node dies while messages move from one level to the next. Each of them is then in one of the two, or in both.
func testKilledNode(t *testing.T, n *node) {
	s := open(t, n.broker(t))
	q := workQueue(t, s)
	const count = 1500
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	at := make(map[string]time.Time, count)
	msgs := make([]broker.Message, count)
	for i := range msgs {
		id := fmt.Sprint(i)
		at[id] = time.Now().Add(50*time.Millisecond + time.Duration(random.Int64N(int64(6*time.Second))))
		msgs[i] = broker.Message{RoutingKey: q, ID: id, NotBefore: at[id]}
	}
	published(t, s, msgs...)
	seen, twice := make(map[string]bool), 0
	take := func(d broker.Delivery) {
		if early := time.Until(at[d.ID]); early > 0 {
			t.Errorf("%q came %v early", d.ID, early)
		}
		if seen[d.ID] {
			twice++
		}
		seen[d.ID] = true
		_ = d.Ack()
	}
	c := consume(t, s, q, 100)
	for len(seen) < count/4 {
		take(receive(t, c))
	}
	n.kill(t)
	wait(t, "the session's end", s.Done())
	for d := range c.Deliveries() {
		take(d)
	}
	before := len(seen)
	s = open(t, n.broker(t))
	c = consume(t, s, q, 100)
	for len(seen) < count {
		select {
		case d := <-c.Deliveries():
			take(d)
		case <-time.After(5 * time.Second):
			// While RabbitMQ boots, it cannot route some messages, because it has not read all bindings yet. It tries
			// them again after three minutes. This call makes it try now.
			t.Logf("%d are held up by the boot", count-len(seen))
			n.run("eval", "[gen_server:cast(P, settle_timeout) || {_, P, _, _} <- supervisor:which_children(rabbit_fifo_dlx_sup)].")
			take(receive(t, c))
		case <-c.Done():
			t.Fatal(c.Err())
		}
	}
	t.Logf("%d came before the node was killed, %d after, %d of them twice", before, len(seen)-before, twice)
}
