package systemtest_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

const (
	// chaosWorkerVar makes the test binary a worker process. It holds a chaosOrder.
	chaosWorkerVar = "DISPATCHER_CHAOS_WORKER"
	// chaosBound limits each of these tests. It is not a speed limit: alone on two cores with the race detector, a test
	// takes half a minute.
	chaosBound = 3 * time.Minute
)

// chaosOrder tells a worker process what to do.
type chaosOrder struct {
	URL, Name string
	Limit     int
}

// workerProcess is a worker process as its parent sees it.
type workerProcess struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	log   strings.Builder
	wait  func() error
	ready chan struct{}
	ended chan struct{} // closed when the process has closed its standard output

	executions int // read this and stats after ended
	stats      dispatcher.Stats
}

// startWorker starts a worker process. The process always ends with the test, however the test ends.
func startWorker(t *testing.T, ctx context.Context, order chaosOrder, ran func(int)) *workerProcess {
	t.Helper()
	text, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	w := &workerProcess{t: t, ready: make(chan struct{}), ended: make(chan struct{})}
	w.cmd = exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout="+chaosBound.String())
	w.cmd.Env = append(os.Environ(), chaosWorkerVar+"="+string(text))
	w.cmd.Stderr = &w.log
	stdout, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if w.stdin, err = w.cmd.StdinPipe(); err != nil { // closing it stops the worker, even if this process is killed
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go w.read(stdout, ran)
	w.wait = sync.OnceValue(func() error { <-w.ended; return w.cmd.Wait() })
	t.Cleanup(func() {
		_ = w.stdin.Close()
		_ = w.wait()
		if t.Failed() {
			t.Log("log of a worker:\n" + w.log.String())
		}
	})
	return w
}

// read follows the worker's standard output, which also contains lines of package testing.
func (w *workerProcess) read(stdout io.Reader, ran func(int)) {
	defer close(w.ended)
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		switch verb, rest, _ := strings.Cut(lines.Text(), " "); verb {
		case "ready":
			close(w.ready)
		case "ran":
			n, err := strconv.Atoi(rest)
			if err != nil {
				w.t.Error(err)
				continue
			}
			w.executions++
			ran(n)
		case "stats":
			if err := json.Unmarshal([]byte(rest), &w.stats); err != nil {
				w.t.Error(err)
			}
		}
	}
}

// stop ends the process gracefully.
func (w *workerProcess) stop() dispatcher.Stats {
	w.t.Helper()
	_ = w.stdin.Close()
	if err := w.wait(); err != nil {
		w.t.Errorf("worker process: %v", err)
	}
	return w.stats
}

// workerMain is the worker process. It runs until its standard input ends.
func workerMain(t *testing.T, text string, set tasks) {
	var order chaosOrder
	if err := json.Unmarshal([]byte(text), &order); err != nil {
		t.Fatal(err)
	}
	server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
		AMQPConnectionString: order.URL, Exchange: order.Name, DefaultRoutingKey: order.Name,
		ReconnectionRetriesForever: true, ReconnectionIntervalSeconds: 1, Retry: fast(3),
		Logger: dispatcher.SlogLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))),
	})
	if err != nil {
		t.Fatal(err)
	}
	w, err := server.NewWorker(&dispatcher.WorkerConfig{Name: "worker", Queue: order.Name, Limit: order.Limit}, set)
	if err == nil {
		err = w.Start(server)
	}
	if err != nil {
		server.Close()
		t.Fatal(err)
	}
	fmt.Println("ready")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	stats, err := json.Marshal(server.Stats())
	if err != nil {
		t.Error(err)
	}
	fmt.Printf("stats %s\n", stats)
}

// runCount counts the executions of tasks 0 to n-1.
type runCount struct {
	runs []atomic.Int32
	left atomic.Int64
	all  chan struct{} // closed when every task has run
}

func newRunCount(n int) *runCount {
	c := &runCount{runs: make([]atomic.Int32, n), all: make(chan struct{})}
	c.left.Store(int64(n))
	return c
}

func (c *runCount) ran(i int) {
	if c.runs[i].Add(1) == 1 && c.left.Add(-1) == 0 {
		close(c.all)
	}
}

func (c *runCount) missing() int64 { return c.left.Load() }

// idle returns the tasks that have not run.
func (c *runCount) idle() (idle []int) {
	for i := range c.runs {
		if c.runs[i].Load() == 0 {
			idle = append(idle, i)
		}
	}
	return idle
}

func (c *runCount) count() (executions, twice int) {
	for i := range c.runs {
		n := int(c.runs[i].Load())
		executions += n
		if n > 1 {
			twice++
		}
	}
	return executions, twice
}
