package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

// maxOpen bounds the tasks that are in the queue or running, so that a tree of millions of files does not fill the
// memory. It is so large that in most trees all files are found early, and the progress bar is accurate.
const maxOpen = 16_384

// results collects the reports of the tasks.
type results struct {
	room chan struct{} // holds one element for each open task

	mu   sync.Mutex // guards the fields below
	open map[string]struct{}
	sums []fileSum
	c    counts
}

type fileSum struct {
	path string
	sum  digest
}

type counts struct {
	tasks, done, failures int // failures of tasks and of the walk
	bytes                 int64
	all                   bool // the walk has ended: no more tasks
}

func newResults() *results {
	return &results{room: make(chan struct{}, maxOpen), open: map[string]struct{}{}}
}

// expect records that a task for path will be published. It waits while maxOpen tasks are open.
func (r *results) expect(ctx context.Context, lost <-chan struct{}, path string) error {
	if err := r.take(ctx, lost); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open[path] = struct{}{}
	r.c.tasks++
	return nil
}

// wait returns when no task is open, which is when it can take all the room. It is called after the last expect.
func (r *results) wait(ctx context.Context, lost <-chan struct{}) error {
	r.mu.Lock()
	r.c.all = true
	r.mu.Unlock()
	for range maxOpen {
		if err := r.take(ctx, lost); err != nil {
			return err
		}
	}
	return nil
}

func (r *results) take(ctx context.Context, lost <-chan struct{}) error {
	if ctx.Err() != nil { // select chooses at random, and a walk cut short by ctx would look complete
		return ctx.Err()
	}
	select {
	case r.room <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-lost:
		return errors.New("the connection to the broker was given up")
	}
}

// settle records the outcome of an open task. It returns false if the task already has one.
func (r *results) settle(path string, sum digest, size int64, err error) bool {
	r.mu.Lock()
	_, open := r.open[path]
	if open {
		delete(r.open, path)
		r.c.done++
		if err == nil {
			r.sums = append(r.sums, fileSum{path, sum})
			r.c.bytes += size
		} else {
			r.c.failures++
		}
	}
	r.mu.Unlock()
	if open {
		<-r.room // never blocks: expect put one element there
	}
	return open
}

// fail counts a failure of the walk.
func (r *results) fail() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.c.failures++
}

func (r *results) counts() counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.c
}

// escaper escapes names as GNU sha256sum does. The line of an escaped name begins with a backslash.
var escaper = strings.NewReplacer("\\", `\\`, "\n", `\n`, "\r", `\r`)

// writeManifest writes the sums for sha256sum -c, sorted by the bytes of the paths. It is called after the last settle.
func (r *results) writeManifest(w io.Writer) error {
	slices.SortFunc(r.sums, func(a, b fileSum) int { return cmp.Compare(a.path, b.path) })
	buffered := bufio.NewWriter(w)
	for _, s := range r.sums {
		name, mark := escaper.Replace(s.path), ""
		if name != s.path {
			mark = `\`
		}
		if name == "-" {
			name = "./-" // sha256sum reads - as standard input
		}
		fmt.Fprintf(buffered, "%s%x  %s\n", mark, s.sum, name)
	}
	return buffered.Flush() // returns the first error of the writes above, if any
}
