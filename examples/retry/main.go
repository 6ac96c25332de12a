// Command retry fetches pages of a flaky web server, with one background task per page. A failed task gets another
// attempt after a pause or becomes a dead letter, which is then deleted, replayed or left. Nothing has to be installed:
// web server and broker are embedded. If DISPATCHER_AMQP_CON is the URL of a RabbitMQ, the tasks go through a queue
// there, which belongs to this run.
//
//	go run ./examples/retry
//
// It exits with 0 if every page had the expected outcome and with 1 if not, after half a minute at most.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Getenv("DISPATCHER_AMQP_CON"), os.Stdout, os.Stderr))
}

func run(ctx context.Context, url string, stdout, stderr io.Writer) int {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	s := story{out: log.New(stdout, "", 0), ended: make(chan string, 64)}
	if err := s.tell(ctx, url); err != nil {
		fmt.Fprintln(stderr, "retry:", err)
		return 1
	}
	return 0
}

// story is one run of the program.
type story struct {
	out   *log.Logger
	ended chan string // uuids of tasks that are done or dead letters; has room for all, since a hook must not wait
}

func (s *story) tell(ctx context.Context, url string) (err error) {
	b, queue, remove, err := newBroker(url)
	if err != nil {
		return err
	}
	site, err := newSite()
	if err != nil {
		return err
	}
	defer site.close()
	server, lost, err := dispatcher.NewServerContext(ctx, &dispatcher.ServerConfig{
		Broker: b, Exchange: "dispatcher.retry", DefaultRoutingKey: queue, Hooks: s.hooks(),
		// A real program is more patient. The defaults are 1 s at first, twice as long each time, and five attempts.
		Retry:  &dispatcher.RetryPolicy{MaxAttempts: 3, InitialInterval: 100 * time.Millisecond},
		Logger: dispatcher.SlogLogger(slog.New(slog.DiscardHandler)), // it would repeat the hooks
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Shutdown(ctx), remove()) }()
	worker, err := server.NewWorker(
		&dispatcher.WorkerConfig{Name: "fetcher", Queue: queue, BindingKeys: []string{queue}},
		map[string]dispatcher.TaskConfig{"fetch": {Function: site.fetch, Timeout: time.Second}})
	if err == nil {
		err = worker.Start(server)
	}
	if err != nil {
		return err
	}

	open := map[string]bool{} // by uuid
	for _, page := range []string{"/steady", "/flaky", "/busy", "/slow", "/missing", "/broken"} {
		task := dispatcher.NewTask("fetch", site.url+page)
		task.Headers = map[string]any{"page": page} // for hooks, whose events carry no arguments
		if err := server.PublishContext(ctx, task); err != nil {
			return err
		}
		open[task.UUID] = true
	}
	if err := s.wait(ctx, lost, open); err != nil {
		return err
	}

	dead := server.DeadLetters(queue)
	letters, err := s.list(ctx, dead)
	if err != nil {
		return err
	}
	s.out.Print("\nA missing page will not come back: deleted. The broken one is repaired: what failed is replayed.")
	site.repaired.Store(true)
	if _, err := dead.Delete(ctx, dispatcher.DeadLetterFilter{Reason: dispatcher.ReasonPermanent}); err != nil {
		return err
	}
	for _, letter := range letters {
		if letter.Reason == dispatcher.ReasonFailed {
			open[letter.UUID] = true
		}
	}
	replayed, err := dead.Replay(ctx, dispatcher.DeadLetterFilter{Reason: dispatcher.ReasonFailed})
	if err == nil {
		err = s.wait(ctx, lost, open)
	}
	if err != nil {
		return err
	}

	left, err := s.list(ctx, dead)
	if err != nil {
		return err
	}
	stats := server.Stats()
	s.out.Printf("\n%d tasks: %d retries, %d dead letters, %d replayed, %d left",
		stats.Published, stats.Retried, stats.DeadLettered, replayed, len(left))
	if replayed != 1 || len(left) != 1 || left[0].Reason != dispatcher.ReasonTimeout {
		return errors.New("one task should have been replayed, and the slow page should be left")
	}
	return nil
}

// hooks returns hooks that print the outcome of each attempt.
func (s *story) hooks() dispatcher.Hooks {
	say := func(task dispatcher.TaskInfo, format string, args ...any) {
		s.out.Printf("%-8v attempt %d: %s", task.Headers["page"], task.Attempt, fmt.Sprintf(format, args...))
	}
	return dispatcher.Hooks{
		Retried: func(e dispatcher.RetryEvent) {
			say(e.Task, "%v, next in %v", e.Err, e.Delay.Round(time.Millisecond))
		},
		DeadLettered: func(e dispatcher.DeadLetterEvent) {
			say(e.Task, "%v, dead letter: %s", e.Err, e.Reason)
			s.ended <- e.Task.UUID
		},
		Finished: func(e dispatcher.FinishEvent) {
			if e.Verdict == dispatcher.VerdictDone { // the hooks above print the others
				say(e.Task, "fetched")
				s.ended <- e.Task.UUID
			}
		},
	}
}

// wait returns when all open tasks have ended. A task may run twice, so wait counts uuids.
func (s *story) wait(ctx context.Context, lost <-chan struct{}, open map[string]bool) error {
	for len(open) > 0 {
		select {
		case uuid := <-s.ended:
			delete(open, uuid)
		case <-lost:
			return errors.New("the connection to the broker was given up")
		case <-ctx.Done():
			return fmt.Errorf("%d tasks have not ended: %w", len(open), ctx.Err())
		}
	}
	return nil
}

func (s *story) list(ctx context.Context, dead *dispatcher.DeadLetters) ([]dispatcher.DeadLetter, error) {
	letters, err := dead.List(ctx, dispatcher.DeadLetterFilter{}, dispatcher.Page{})
	if err != nil {
		return nil, err
	}
	s.out.Printf("\nDead letters: %d", len(letters))
	for _, letter := range letters {
		s.out.Printf("%v: %s, attempts: %d, the last: %s",
			letter.Headers["page"], letter.Reason, letter.Attempts, letter.Error)
		for _, a := range letter.Log {
			s.out.Printf("  %d. at %s for %v: %s", a.Number, a.At.Local().Format("15:04:05.000"), a.Duration, a.Error)
		}
	}
	return letters, nil
}
