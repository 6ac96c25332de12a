// Command checksums computes the SHA-256 of every file below a folder, one background task a file, with nothing
// installed: the broker is embedded. With the URL of a RabbitMQ in DISPATCHER_AMQP_CON the tasks travel through that, by a
// queue of this run's own, which is deleted at the end.
//
//	go run ./examples/checksums [folder] > /tmp/SHA256SUMS
//	cd folder && sha256sum -c /tmp/SHA256SUMS
//
// It exits with 0 if all is well, with 1 if a file failed (each is named on standard error; the manifest has the others), with 2
// if it was called wrongly and with 130 if it was interrupted: then there is no manifest, since half a manifest looks
// like a whole one.
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
	// The Go runtime kills a program that writes to a closed standard output, without a word. Ignored, the signal becomes an
	// error of the write.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
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
	// Paths come to the tasks in messages. Whatever they say, nothing outside of root can be opened.
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

// sumAll writes the manifest of files, or says why not, and returns the exit code.
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
	fmt.Fprintf(stderr, "%d tasks, %d failures, %v, %.0f files/s, %.1f MB/s\n", c.tasks, c.failures, took.Round(time.Millisecond),
		float64(c.done)/took.Seconds(), float64(c.bytes)/1e6/took.Seconds())
	if c.failures > 0 {
		return 1
	}
	return 0
}

const taskName = "checksum"

// batchSize is how many tasks are published at once. The broker confirms a batch much faster than so many single tasks.
const batchSize = 256

// job is one run of the program: it publishes the tasks and its method checksum is their function.
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
		DefaultRoutingKey: j.route.queue, // one kind of task, one queue: the key is the queue's name
		// The library would log each dead letter. Here every failure has its line on standard error already.
		Logger: dispatcher.SlogLogger(slog.New(slog.DiscardHandler)),
	})
	if err != nil {
		return err
	}
	// When all tasks have reported none is running, and this returns at once. After Ctrl-C ctx has ended: running tasks
	// are cancelled, and what is still in the queue goes with the embedded broker.
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

// publish publishes a task for each file. One that was not published, or perhaps not, counts as failed.
func (j *job) publish(ctx context.Context, server *dispatcher.Server, files []file) {
	tasks := make([]*dispatcher.Task, len(files))
	for i, f := range files {
		tasks[i] = dispatcher.NewTask(taskName, encodePath(f.path), f.size)
	}
	for i, err := range server.PublishBatch(ctx, tasks) { // nil if all went well
		if err != nil && ctx.Err() == nil {
			j.report(files[i].path, digest{}, 0, err)
		}
	}
}

var errPanicked = errors.New("the task panicked")

// checksum is the task. It runs in this process, so it hands its result over by itself, and it does so whatever happens:
// the program waits for the report. Its error makes the task a dead letter.
func (j *job) checksum(ctx context.Context, encoded string, size int64) (err error) {
	path, err := decodePath(encoded)
	if err != nil {
		return err
	}
	var sum digest
	err = errPanicked // until the next statement has returned
	defer func() {
		if !errors.Is(err, dispatcher.ErrShutdown) { // a task that is given back has no outcome yet
			j.report(path, sum, size, err)
		}
	}()
	sum, err = hashFile(ctx, j.root, path, size)
	return err
}

// report takes a task's outcome. Tasks run at least once: a second report for the same file is ignored.
func (j *job) report(path string, sum digest, size int64, err error) {
	if j.results.settle(path, sum, size, err) && err != nil {
		j.warn(path, err)
	}
}

// warn names a file that failed, quoted, since a name may hold anything, line feeds and escape sequences included.
func (j *job) warn(path string, err error) {
	j.progress.print(fmt.Sprintf("checksums: %q: %v", path, reason(err)))
}
