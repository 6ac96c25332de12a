// Command checksums computes the SHA-256 of every file below a folder, with one background task per file. Nothing has
// to be installed, since the broker is embedded. If DISPATCHER_AMQP_CON is the URL of a RabbitMQ, the tasks go through
// a queue there. Each run has a queue of its own and deletes it at the end.
//
//	go run ./examples/checksums [folder] > /tmp/SHA256SUMS
//	cd folder && sha256sum -c /tmp/SHA256SUMS
//
// It exits with 0 if it succeeded, with 1 if a file failed (failed files are named on standard error; the manifest has
// the others), with 2 if it was called wrongly and with 130 if it was interrupted. After an interrupt there is no
// manifest, since half a manifest looks like a whole one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

func main() {
	// The Go runtime silently kills a program that writes to a closed standard output. If the signal is ignored, the
	// write returns an error instead.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills the program
	os.Exit(run(ctx, os.Args[1:], os.Getenv("DISPATCHER_AMQP_CON"), os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, url string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("checksums", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprintln(stderr, "usage: checksums [folder]") }
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 1:
		flags.Usage()
		return 2
	}
	folder := "."
	if flags.NArg() == 1 {
		folder = flags.Arg(0)
	}
	// Tasks get their paths from messages. With root, no path can open a file outside of the folder.
	root, err := os.OpenRoot(folder)
	if err != nil {
		fmt.Fprintf(stderr, "checksums: folder %q: %v\n", folder, reason(err))
		return 2
	}
	defer root.Close()
	r, err := newRoute(url)
	if err != nil {
		fmt.Fprintln(stderr, "checksums:", err)
		return 2
	}
	return sumAll(ctx, root, r, walk(ctx, folder, outputs(stdout, stderr)), stdout, stderr)
}

// sumAll writes the manifest of files or reports why it cannot. It returns the exit code.
func sumAll(ctx context.Context, root *os.Root, r route, files iter.Seq2[file, error], stdout, stderr io.Writer) int {
	started := time.Now()
	j := &job{root: root, route: r, results: newResults()}
	j.progress = newProgress(stderr, j.results.counts)
	go j.progress.run()
	err := j.run(ctx, files)
	j.progress.end()

	c := j.results.counts()
	switch {
	case err != nil && ctx.Err() != nil:
		fmt.Fprintf(stderr, "checksums: interrupted after %d of %d tasks; no manifest\n", c.done, c.tasks)
		return 130
	case err != nil:
		fmt.Fprintln(stderr, "checksums:", err)
		return 1
	}
	if err := j.results.writeManifest(stdout); err != nil {
		fmt.Fprintln(stderr, "checksums: write manifest:", err)
		return 1
	}
	took := time.Since(started)
	fmt.Fprintf(stderr, "%d tasks, %d failures, %v, %.0f files/s, %.1f MB/s\n",
		c.tasks, c.failures, took.Round(time.Millisecond),
		float64(c.done)/took.Seconds(), float64(c.bytes)/1e6/took.Seconds())
	if c.failures > 0 {
		return 1
	}
	return 0
}

const taskName = "checksum"

// batchSize is the number of tasks published at once. The broker confirms a batch much faster than single tasks.
const batchSize = 256

// job is one run of the program. It publishes the tasks, and its method checksum is their function.
type job struct {
	root     *os.Root
	route    route
	results  *results
	progress *progress
}

// run publishes a task for each file and waits until all of them have reported.
func (j *job) run(ctx context.Context, files iter.Seq2[file, error]) (err error) {
	server, lost, err := dispatcher.NewServerContext(ctx, &dispatcher.ServerConfig{
		Broker:            j.route.broker,
		Exchange:          "dispatcher.checksums",
		DefaultRoutingKey: j.route.queue, // one kind of task and one queue: the queue's name is the key
		// The library would log each dead letter, but every failure already has a line on standard error.
		Logger: dispatcher.SlogLogger(slog.New(slog.DiscardHandler)),
	})
	if err != nil {
		return err
	}
	// When all tasks have reported, none is running and Shutdown returns at once. After Ctrl-C, ctx has ended: running
	// tasks are cancelled, and the tasks in the queue end with the embedded broker.
	defer func() { err = errors.Join(err, server.Shutdown(ctx), j.route.remove()) }()

	worker, err := server.NewWorker(&dispatcher.WorkerConfig{
		Name:        "hasher",
		Queue:       j.route.queue,
		BindingKeys: []string{j.route.queue},
		Limit:       runtime.GOMAXPROCS(0),
	}, map[string]dispatcher.TaskConfig{
		taskName: {Function: j.checksum},
	})
	if err != nil {
		return err
	}
	if err := worker.Start(server); err != nil {
		return err
	}

	batch := make([]file, 0, batchSize)
	for f, err := range files {
		if err != nil {
			j.results.fail()
			j.warn(f.path, err)
			continue
		}
		if err := j.results.expect(ctx, lost, f.path); err != nil {
			return err
		}
		if batch = append(batch, f); len(batch) == batchSize {
			j.publish(ctx, server, batch)
			batch = batch[:0]
		}
	}
	j.publish(ctx, server, batch)
	return j.results.wait(ctx, lost)
}

// publish publishes a task for each file. A file whose task was certainly or perhaps not published counts as failed.
func (j *job) publish(ctx context.Context, server *dispatcher.Server, files []file) {
	tasks := make([]*dispatcher.Task, len(files))
	for i, f := range files {
		tasks[i] = dispatcher.NewTask(taskName, encodePath(f.path), f.size)
	}
	for i, err := range server.PublishBatch(ctx, tasks) { // nil if all were published
		if err != nil && ctx.Err() == nil {
			j.report(files[i].path, digest{}, 0, err)
		}
	}
}

var errPanicked = errors.New("the task panicked")

// checksum is the function of the tasks. It runs in this process and reports its result directly. It always reports,
// even after a panic, since the program waits for the report. If it returns an error, the task becomes a dead letter.
func (j *job) checksum(ctx context.Context, encoded string, size int64) (err error) {
	path, err := decodePath(encoded)
	if err != nil {
		return err
	}
	var sum digest
	err = errPanicked // until hashFile returns
	defer func() {
		if !errors.Is(err, dispatcher.ErrShutdown) { // a task that is given back has no outcome yet
			j.report(path, sum, size, err)
		}
	}()
	sum, err = hashFile(ctx, j.root, path, size)
	return err
}

// report records a task's outcome. Tasks run at least once, so a second report for the same file is ignored.
func (j *job) report(path string, sum digest, size int64, err error) {
	if j.results.settle(path, sum, size, err) && err != nil {
		j.warn(path, err)
	}
}

// warn prints a failed file and its error. The name is quoted, since it may hold line feeds and escape sequences.
func (j *job) warn(path string, err error) {
	j.progress.print(fmt.Sprintf("checksums: %q: %v", path, reason(err)))
}
