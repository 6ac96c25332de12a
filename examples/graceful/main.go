// Command graceful shows how a program with a worker stops on SIGTERM or Ctrl-C without losing a task:
//
//	go run ./examples/graceful            (then Ctrl-C)
//	go run ./examples/graceful -for 2s
//
// Short tasks end before the drain deadline. Long tasks watch their context and stop at the deadline; they go back to
// the queue, for another worker. With -stubborn, one task ignores its context and is left running.
//
// It exits with 0 if every task that had begun has ended, with 1 if some were left running, with 2 if it was called
// wrongly.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("graceful", flag.ContinueOnError)
	flags.SetOutput(stderr)
	limit := flags.Duration("for", 0, "stop by itself after this `time`; 0 = wait for a signal")
	drain := flags.Duration("drain", 5*time.Second, "`time` that running tasks have to end")
	stubborn := flags.Bool("stubborn", false, "publish a task that ignores its context")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		flags.Usage()
		return 2
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *limit)
		defer cancel()
	}

	t := &tasks{out: log.New(stdout, "", 0)}
	server, lost, err := start(ctx, t)
	if err != nil {
		fmt.Fprintln(stderr, "graceful:", err)
		return 1
	}
	t.out.Printf("ready: process %d", os.Getpid())
	err = publishUntil(ctx, lost, server, *stubborn)

	// From here on a second signal kills the program at once, as usual.
	stop()
	t.out.Printf("stopping: running tasks have %v", *drain)
	deadline, cancel := context.WithTimeout(context.Background(), *drain)
	defer cancel()
	// Shutdown takes no more tasks and waits for the running ones. Tasks that they publish are still sent. At the
	// deadline it cancels their contexts, with ErrShutdown as the cause.
	err = errors.Join(err, server.Shutdown(deadline))

	published, begun := server.Stats().Published, t.begun.Load()
	t.out.Printf("%d tasks: %d finished, %d given back, %d left running, %d not begun",
		published, t.finished.Load(), t.givenBack.Load(),
		begun-t.finished.Load()-t.givenBack.Load(), published-begun)
	if err != nil {
		fmt.Fprintln(stderr, "graceful:", err) // errors.Is(err, dispatcher.ErrTasksRunning): some were left running
		return 1
	}
	return 0
}

// start connects and starts a worker that runs up to four tasks at once.
func start(ctx context.Context, t *tasks) (*dispatcher.Server, <-chan struct{}, error) {
	server, lost, err := dispatcher.NewServerContext(ctx, &dispatcher.ServerConfig{
		// The queues of the embedded broker end with the process. In RabbitMQ, tasks that have not begun or are given
		// back wait for another worker.
		Broker:            memory.New(),
		Exchange:          "graceful",
		DefaultRoutingKey: "work",
	})
	if err != nil {
		return nil, nil, err
	}
	worker, err := server.NewWorker(&dispatcher.WorkerConfig{
		Name: "worker", Queue: "work", BindingKeys: []string{"work"}, Limit: 4,
	}, map[string]dispatcher.TaskConfig{
		"short":    {Function: t.short},
		"long":     {Function: t.long},
		"stubborn": {Function: t.stubborn},
	})
	if err == nil {
		err = worker.Start(server)
	}
	if err != nil {
		server.Close()
		return nil, nil, err
	}
	return server, lost, nil
}

// publishUntil publishes two long tasks and then short ones, slightly more than the worker can run, until ctx ends. It
// then returns nil. It calls Publish, which does not end with ctx, so it still waits for the outcome of the last task.
func publishUntil(ctx context.Context, lost <-chan struct{}, server *dispatcher.Server, stubborn bool) error {
	first := []*dispatcher.Task{dispatcher.NewTask("long", 1, time.Minute), dispatcher.NewTask("long", 2, time.Minute)}
	if stubborn {
		first = append(first, dispatcher.NewTask("stubborn", 3))
	}
	for _, task := range first {
		if err := server.Publish(task); err != nil {
			return err
		}
	}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for n := len(first) + 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-lost:
			return errors.New("the connection to the broker was given up")
		case <-ticker.C:
		}
		if err := server.Publish(dispatcher.NewTask("short", n, 300*time.Millisecond)); err != nil {
			return err
		}
	}
}

// tasks has the functions of the worker and counts their outcomes.
type tasks struct {
	out                        *log.Logger
	begun, finished, givenBack atomic.Int64
}

// short ignores its context, since it ends before any sensible drain deadline.
func (t *tasks) short(n int, work time.Duration) {
	t.begun.Add(1)
	time.Sleep(work)
	t.finished.Add(1)
	t.out.Printf("task %d (short) finished", n)
}

// long works in steps and checks its context in between. An error after a shutdown is not a failure: the task goes back
// to its queue.
func (t *tasks) long(ctx context.Context, n int, work time.Duration) error {
	t.begun.Add(1)
	t.out.Printf("task %d (long) begun", n)
	step := time.NewTicker(50 * time.Millisecond)
	defer step.Stop()
	for begin := time.Now(); time.Since(begin) < work; {
		select {
		case <-step.C:
		case <-ctx.Done():
			if cause := context.Cause(ctx); errors.Is(cause, dispatcher.ErrShutdown) {
				t.givenBack.Add(1)
				ran := time.Since(begin).Round(time.Millisecond)
				t.out.Printf("task %d (long) given back after %v: %v", n, ran, cause)
			}
			return context.Cause(ctx)
		}
	}
	t.finished.Add(1)
	t.out.Printf("task %d (long) finished", n)
	return nil
}

// stubborn ignores its context, which a task should not do. Nothing can stop such a goroutine.
func (t *tasks) stubborn(n int) {
	t.begun.Add(1)
	t.out.Printf("task %d (stubborn) begun", n)
	time.Sleep(time.Hour)
	t.finished.Add(1)
}
