package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/deadletter"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/text"
)

// Undeliverable is the name to pass to Server.DeadLetters for the delayed tasks that no queue took when they were due.
// They are those of all programs that use the same broker.
const Undeliverable = broker.Undeliverable

// DeadLetters gives access to the dead letters of one queue, oldest first. Make it with [Server.DeadLetters]. All
// methods are safe for concurrent use.
//
// Reading borrows dead letters from the broker and returns them. A concurrent call may miss the borrowed ones: a List
// beside another List, Replay or Delete may miss some. Nothing is lost or doubled by that, even if the connection or
// the process ends in between: a borrowed letter is still a dead letter. Each call looks at no more letters than were
// there when it began, so it ends even while tasks go on dying. It passes over at most 10,000 letters with 128 MiB;
// more is an error.
//
// All methods wait for a connection, at most ServerConfig.PublishTimeout, and end with ctx. Their errors name the queue
// and the operation that failed: [ErrDisconnected], [ErrServerClosed], [ErrQueueGone] if the queue of dead letters does
// not exist, ctx's own error, or another one if the name is invalid for a worker's queue. If the queue of Undeliverable
// does not exist, there are no letters.
type DeadLetters struct {
	server *Server
	queue  string
}

// DeadLetters gives access to the dead letters of a worker's queue, by the name of that queue, or to those that are
// [Undeliverable]. The queue may be any on the broker: it needs no worker in this server. DeadLetters itself does
// nothing and cannot fail. The methods return an error if the name is invalid.
func (s *Server) DeadLetters(queue string) *DeadLetters {
	return &DeadLetters{server: s, queue: queue}
}

// DeadLetterFilter selects the dead letters that match all fields that are set. The zero value matches all. List
// accepts it; Replay and Delete do not, so that a forgotten parameter does not run or remove everything. Letters that
// do not match are passed over, and no call passes over more than 10,000. Kinds of tasks that produce so many need
// queues of their own.
type DeadLetterFilter struct {
	UUID       string
	Name       string    // of the task
	Reason     string    // one of the constants Reason…
	Queue      string    // DeadLetter.Queue; useful for undeliverable letters, which come from many queues
	RoutingKey string    // DeadLetter.RoutingKey
	Since      time.Time // died then or later; a letter without a time of death does not match
	Until      time.Time // died before; likewise

	// Headers are names of DeadLetter.Headers and their values as fmt.Sprint prints them, times as RFC 3339. A letter
	// must have all of them.
	Headers map[string]string
}

func (f *DeadLetterFilter) isZero() bool {
	return f.UUID == "" && f.Name == "" && f.Reason == "" && f.Queue == "" && f.RoutingKey == "" &&
		f.Since.IsZero() && f.Until.IsZero() && len(f.Headers) == 0
}

// fits reports whether a dead letter matches the filter.
func (f *DeadLetterFilter) fits(who *identity) bool {
	switch {
	case f.UUID != "" && f.UUID != who.uuid,
		f.Name != "" && f.Name != who.name,
		f.Reason != "" && f.Reason != who.reason,
		f.Queue != "" && f.Queue != who.queue,
		f.RoutingKey != "" && f.RoutingKey != who.routingKey,
		(!f.Since.IsZero() || !f.Until.IsZero()) && who.diedAt.IsZero(),
		!f.Since.IsZero() && who.diedAt.Before(f.Since),
		!f.Until.IsZero() && !who.diedAt.Before(f.Until):
		return false
	}
	for name, want := range f.Headers {
		v, ok := who.headers[name]
		hidden := record.IsOwn(name) && !record.IsForPeople(name)
		if !ok || hidden || printHeader(v) != want {
			return false
		}
	}
	return true
}

func printHeader(v any) string {
	if at, ok := v.(time.Time); ok {
		return at.UTC().Format(time.RFC3339)
	}
	return fmt.Sprint(v)
}

// Page selects a part of a list.
type Page struct {
	Skip  int // letters to leave out at the beginning; they are passed over, so at most 10,000. Negative: an error.
	Limit int // letters to return at most, 1 to 1,000. 0: 100.
}

const (
	defaultPage = 100
	maxPage     = 1000
	// maxPageBytes bounds the bodies of one page.
	maxPageBytes = 64 << 20
)

func (p Page) withDefaults() (Page, error) {
	if p.Limit == 0 {
		p.Limit = defaultPage
	}
	if p.Skip < 0 {
		return p, fmt.Errorf("Page.Skip is %d, want 0 or more", p.Skip)
	}
	if p.Limit < 0 || p.Limit > maxPage {
		return p, fmt.Errorf("Page.Limit is %d, want 1 to %d", p.Limit, maxPage)
	}
	p.Skip = min(p.Skip, math.MaxInt32) // more than any call can pass over, and no sum overflows
	return p, nil
}

// Count returns the number of dead letters. It does not count those that are being read at this moment or, on RabbitMQ,
// were read a moment ago.
func (d *DeadLetters) Count(ctx context.Context) (int, error) {
	n, err := d.whole(ctx, func(s broker.Session, source string) (int, error) {
		info, err := s.Inspect(ctx, source)
		return info.Ready, err
	})
	return n, d.wrap("count", err)
}

// Purge permanently removes all dead letters and returns their number. Those that are being read at this moment stay.
func (d *DeadLetters) Purge(ctx context.Context) (int, error) {
	n, err := d.whole(ctx, func(s broker.Session, source string) (int, error) { return s.Purge(ctx, source) })
	if n > 0 {
		d.server.log.Info("dead letters purged", "queue", d.queue, "count", n)
	}
	return n, d.wrap("purge", err)
}

// whole runs f on the queue as a whole.
func (d *DeadLetters) whole(ctx context.Context, f func(s broker.Session, source string) (int, error)) (int, error) {
	s, err := d.begin(ctx)
	if err != nil {
		return 0, err
	}
	n, err := f(s.Session, s.Source)
	if errors.Is(err, broker.ErrQueueGone) && d.undeliverable() {
		return 0, nil
	}
	return n, err
}

// begin waits for a session and returns a new scan.
func (d *DeadLetters) begin(ctx context.Context) (*deadletter.Scan, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	waiting, cancel := d.server.cfg.bound(ctx)
	defer cancel()
	session, err := d.server.sup.Await(waiting, nil)
	if err != nil {
		return nil, err
	}
	return deadletter.NewScan(session, d.source()), ctx.Err()
}

// List returns a page of the dead letters that match the filter, oldest first, and removes nothing. An empty page means
// that there are no more. Pages fit together as long as nothing is removed. The bodies of a page have at most 64 MiB
// together; more is an error: ask for fewer letters.
func (d *DeadLetters) List(ctx context.Context, filter DeadLetterFilter, page Page) ([]DeadLetter, error) {
	letters, err := d.list(ctx, filter, page)
	return letters, d.wrap("list", err)
}

func (d *DeadLetters) list(ctx context.Context, filter DeadLetterFilter, page Page) ([]DeadLetter, error) {
	page, err := page.withDefaults()
	if err != nil {
		return nil, err
	}
	s, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Release(ctx)
	var letters []DeadLetter
	for size, skip := 0, page.Skip; len(letters) < page.Limit; {
		most := deadletter.MaxChunk
		if filter.isZero() {
			most = min(most, skip+page.Limit-len(letters))
		}
		found, err := s.Next(ctx, most)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			break
		}
		full := s.Hold(found...)
		for i := range found {
			m := &found[i].Message
			if who := d.identify(m); filter.fits(&who) && len(letters) < page.Limit {
				if skip > 0 {
					skip--
					continue
				}
				if size += len(m.Body); size > maxPageBytes && len(letters) > 0 {
					return nil, fmt.Errorf("the bodies of %d dead letters exceed %d MiB: ask for fewer",
						len(letters)+1, maxPageBytes>>20)
				}
				letters = append(letters, d.letter(m))
			}
		}
		if full != nil && len(letters) < page.Limit {
			return nil, full
		}
	}
	return letters, nil
}

// Get returns the dead letter with that uuid, the oldest if there are several, and removes nothing. The error Is
// [ErrDeadLetterNotFound] if there is none.
func (d *DeadLetters) Get(ctx context.Context, uuid string) (*DeadLetter, error) {
	if uuid == "" {
		return nil, d.wrap("get", ErrDeadLetterNotFound)
	}
	letters, err := d.list(ctx, DeadLetterFilter{UUID: uuid}, Page{Limit: 1})
	if err == nil && len(letters) == 0 {
		err = fmt.Errorf("%w: %q", ErrDeadLetterNotFound, text.Excerpt(uuid))
	}
	if err != nil {
		return nil, d.wrap("get", err)
	}
	return &letters[0], nil
}

// Delete permanently removes the dead letters that match the filter and returns their number. The zero filter is an
// error; [DeadLetters.Purge] removes all. After an error, the counted letters are removed, unless the connection was
// lost: then some may still be there.
func (d *DeadLetters) Delete(ctx context.Context, filter DeadLetterFilter) (int, error) {
	n, err := d.delete(ctx, filter)
	if n > 0 {
		d.server.log.Info("dead letters deleted", "queue", d.queue, "count", n)
	}
	return n, d.wrap("delete", err)
}

func (d *DeadLetters) delete(ctx context.Context, filter DeadLetterFilter) (n int, err error) {
	if filter.isZero() {
		return 0, errors.New("the filter is empty; use Purge to delete all dead letters")
	}
	s, err := d.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer s.Release(ctx)
	for {
		found, err := s.Next(ctx, deadletter.MaxChunk)
		if err != nil {
			return n, err
		}
		if len(found) == 0 {
			return n, s.Finish(ctx, n)
		}
		for i, letter := range found {
			if who := d.identify(&letter.Message); !filter.fits(&who) {
				err = s.Hold(letter)
			} else if err = letter.Ack(); err == nil {
				n++
			}
			if err != nil {
				_ = s.Hold(found[i+1:]...)
				return n, err
			}
		}
	}
}

func (d *DeadLetters) undeliverable() bool { return d.queue == Undeliverable }

// source returns the queue that holds the letters.
func (d *DeadLetters) source() string {
	if d.undeliverable() {
		return d.queue
	}
	return d.queue + broker.DeadSuffix
}

// check refuses names that no worker's queue can have.
func (d *DeadLetters) check() error {
	var p problems
	p.addIf(d.queue == "", ErrEmptyQueueName)
	p.name("its name", d.queue, maxQueueBytes)
	for _, suffix := range []string{broker.DeadSuffix, broker.SuspectsSuffix} {
		owner := text.Excerpt(strings.TrimSuffix(d.queue, suffix))
		p.addIf(strings.HasSuffix(d.queue, suffix),
			fmt.Errorf("names ending in %s are reserved: ask for %q", suffix, owner))
	}
	return p.err()
}

// wrap adds the operation and the queue to an error; nil stays nil. A lost session is reported as ErrDisconnected
// unless something was sent, since ErrDisconnected promises that nothing was.
func (d *DeadLetters) wrap(verb string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, broker.ErrSessionLost) && !errors.Is(err, ErrDisconnected) && !errors.Is(err, ErrUnconfirmed) {
		err = fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	return fmt.Errorf("%s dead letters of queue %q: %w", verb, text.Cut(d.queue, record.MaxName), err)
}
