package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/contain"
	"github.com/seed-416683c9/dispatcher/internal/publish"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/text"
	"github.com/seed-416683c9/dispatcher/internal/wire"
)

// Publish sends task and waits until the broker has confirmed it. A nil error means that the task is confirmed and in
// at least one queue. Otherwise the error Is exactly one of [ErrNotSent], [ErrRejected], [ErrUnconfirmed] and, with
// ServerConfig.Outbox, [ErrInOutbox], which say whether it may be published again. The library itself never sends a
// task twice, unless it is in the outbox.
//
// An empty UUID is filled with a random one (version 4) and an empty RoutingKey with ServerConfig.DefaultRoutingKey.
// This is done in the caller's task, even when an error is returned, so that a second try keeps the identity. Do not
// change or publish the same *Task elsewhere during the call.
//
// Publish fails at once with [ErrDisconnected] when there is no connection; otherwise it blocks for at most
// ServerConfig.PublishTimeout. With an outbox it keeps the task there instead of failing, as described at
// ServerConfig.Outbox.
func (s *Server) Publish(task *Task) error {
	return s.publisher.publish(context.Background(), []*Task{task}, false)[0]
}

// PublishContext is [Server.Publish] bounded by ctx, and at the latest by ServerConfig.PublishTimeout. When there is no
// connection it waits for one. With ServerConfig.Outbox it keeps the task there instead, unless ctx has ended.
//
// If ctx ends after the task was sent and before it was confirmed, the error Is [ErrUnconfirmed] and ctx's error.
func (s *Server) PublishContext(ctx context.Context, task *Task) error {
	return s.publisher.publish(ctx, []*Task{task}, true)[0]
}

// PublishBatch publishes tasks in their order and waits for all of them. It returns one error for each task, in the
// same order, or nil if all were published. Each error is as from [Server.PublishContext], and a bad task does not hold
// up the others. It is much faster than one call for each task, since the broker confirms many at once.
// ServerConfig.PublishTimeout bounds the whole batch: for more than some thousands of tasks use [Server.PublishAll].
func (s *Server) PublishBatch(ctx context.Context, tasks []*Task) []error {
	errs := s.publisher.publish(ctx, tasks, true)
	for _, err := range errs {
		if err != nil {
			return errs
		}
	}
	return nil
}

// PublishAll publishes the tasks of a sequence, of any length, in their order, and yields each of them with its
// outcome, in the same order. Nothing is published before the result is ranged over, and ranging over it twice
// publishes twice. It is as fast as [Server.PublishBatch] (measured on RabbitMQ, bench/README.md). It needs constant
// memory: at most 2,000 tasks, or 8 MiB of bodies, are taken from the sequence and not yet yielded.
//
// Each error is as from [Server.PublishContext]. ServerConfig.PublishTimeout, or up to a hundredth less, bounds each
// task, from when it is taken from the sequence. While there is no connection, or the broker blocks publishers, known
// outcomes are yielded first and no other task is taken. With ServerConfig.Outbox tasks go to the outbox meanwhile. A
// nil task is yielded with an error that Is [ErrRejected].
//
// Yield a new *Task each time, and do not change it before its result. The body of the loop may publish.
//
// When ctx ends, the next task is yielded with an error that Is [ErrNotSent] and ctx's error, and no more are taken. So
// a loop that has seen no error has published the whole sequence.
//
// When the loop is left early, no more tasks are taken. Tasks that were taken and not yielded are still published:
// PublishAll waits for their outcomes, at most for PublishTimeout or until ctx ends, and reports them only to Stats and
// Hooks.Published. The same holds if the sequence or the body of the loop panics; the panic then goes on.
//
// PublishAll starts no goroutine. It calls the sequence on the caller's goroutine, so while the sequence blocks, no
// result is yielded.
func (s *Server) PublishAll(ctx context.Context, tasks iter.Seq[*Task]) iter.Seq2[*Task, error] {
	return func(yield func(*Task, error) bool) {
		cfg := publish.StreamConfig[*Task]{Prepare: s.publisher.prepare, Conclude: s.publisher.conclude}
		st := publish.NewStream(ctx, s.publisher.sender, cfg)
		defer st.Close()
		for task := range tasks {
			ended := ctx.Err() != nil
			st.Take(task, ended)
			if !st.Yield(yield) {
				return
			}
			if ended {
				break
			}
		}
		st.Flush(yield)
	}
}

// PublishAsync publishes task without waiting for its outcome, and calls done with it. So a single goroutine can keep
// the connection busy. Each outcome is as from [Server.PublishContext], and so are the bounds of ctx and
// ServerConfig.PublishTimeout, or up to a hundredth less. A nil task is an error that Is [ErrRejected]. The task must
// not be changed before done is called.
//
// PublishAsync returns when the task is written. It blocks while the connection has as many unconfirmed tasks as it may
// have (about 900 on RabbitMQ), while 2,000 tasks, or 8 MiB of bodies, have not had their done called, while the broker
// blocks publishers and, without ServerConfig.Outbox, while there is no connection. Tasks from one goroutine are
// written in order. A task that a lost connection did not take is sent again, or goes to the outbox, perhaps after
// later ones.
//
// done is called exactly once, in the order in which the outcomes become known: by one goroutine of the server or, if
// the outcome is known at once, before PublishAsync returns. It must not block, publish or close the server, since all
// later outcomes wait for it. A panic of done is logged. done may be nil. Shutdown and Close wait, within their time,
// until done was called for every task that was taken before.
func (s *Server) PublishAsync(ctx context.Context, task *Task, done func(error)) {
	began := time.Now()
	msg, err := s.publisher.prepare(task)
	if err != nil {
		s.publisher.tell(asyncTask{task, done}, began, err)
		return
	}
	s.publisher.async.Send(ctx, asyncTask{task, done}, msg)
}

// asyncTask is a task of PublishAsync.
type asyncTask struct {
	task *Task
	done func(error)
}

// contentType is the content type of a task's body.
const contentType = "application/json"

// publisher turns tasks into messages, and their outcomes into errors, counts and events. Package publish sends the
// messages.
type publisher struct {
	cfg    *ServerConfig
	log    *slog.Logger
	stats  publishCounters
	sender *publish.Sender
	async  *publish.Async[asyncTask]
}

// newPublisher returns the server's publisher and, with an outbox, its courier. It asks the outbox for entries that an
// earlier program left, and starts no goroutine.
func (s *Server) newPublisher(ctx context.Context) (*publisher, *publish.Courier, error) {
	p := &publisher{cfg: &s.cfg, log: s.log}
	cfg := publish.Config{
		Link: s.sup, Log: s.log, Timeout: s.cfg.PublishTimeout, Bound: s.cfg.bound, ExchangeGone: s.exchangeGone,
		Outbox: outboxOf(&s.cfg, s.log), Noun: "task", Exchange: s.cfg.Exchange, ContentType: contentType,
		Advise: advised, Confirmed: func() { _ = p.stats.count(nil) }, Left: p.left,
	}
	courier, err := publish.NewCourier(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	p.sender = publish.NewSender(cfg, courier)
	p.async = publish.NewAsync(p.sender, p.tell)
	return p, courier, nil
}

// publish returns one outcome a task. With wait it waits for a session until ctx ends or PublishTimeout has passed.
// With an outbox it never waits for one.
func (p *publisher) publish(caller context.Context, tasks []*Task, wait bool) []error {
	began := time.Now()
	ctx, cancel := p.cfg.bound(caller)
	defer cancel()
	batch := publish.NewBatch(len(tasks))
	errs := batch.Errs
	for i, task := range tasks {
		msg, err := p.prepare(task)
		if err != nil {
			errs[i] = err
			continue
		}
		batch.Add(i, msg)
	}
	p.sender.Send(caller, ctx, batch, wait)
	for i, err := range errs {
		errs[i] = p.conclude(tasks[i], began, err)
	}
	return errs
}

// conclude counts an outcome, calls the hook and returns the error for the caller.
func (p *publisher) conclude(task *Task, began time.Time, err error) error {
	// The errors of gofort/dispatcher keep their whole text.
	if err != nil && err != ErrDisconnected && err != ErrTaskName && task != nil {
		err = fmt.Errorf("publish task %q (%q) with key %q: %w",
			text.Excerpt(task.Name), text.Excerpt(task.UUID), text.Excerpt(task.RoutingKey), advised(err))
	}
	err = p.stats.count(err)
	if hook := p.cfg.Hooks.Published; hook != nil {
		event := PublishEvent{Err: err, Duration: time.Since(began)}
		if task != nil {
			event.UUID, event.Name, event.RoutingKey = task.UUID, task.Name, task.RoutingKey
		}
		contain.Call(p.log, hook, event)
	}
	return err
}

// tell concludes a task of PublishAsync.
func (p *publisher) tell(t asyncTask, began time.Time, err error) {
	defer func() { // also if Hooks.Published ends this goroutine
		if t.done != nil {
			contain.CallAs(p.log, "function of PublishAsync", t.done, err)
		}
	}()
	err = p.conclude(t.task, began, err)
}

// left counts an entry that was buried, and calls the hooks for an entry that has its outcome.
func (p *publisher) left(e publish.Entry, err error, buried bool) {
	if buried {
		p.stats.outboxDead.Add(1)
	}
	event := PublishEvent{
		UUID:       e.UUID,
		Name:       e.Name,
		RoutingKey: e.RoutingKey,
		Err:        err,
		Duration:   time.Since(e.AcceptedAt),
	}
	if hook := p.cfg.Hooks.Published; hook != nil {
		contain.CallApart(p.log, hook, event)
	}
	if hook := p.cfg.Hooks.OutboxRefused; hook != nil && buried {
		contain.CallApart(p.log, hook, event)
	}
}

// advised adds what to do about an error that has a usual cause.
func advised(err error) error {
	if errors.Is(err, ErrUnroutable) {
		return fmt.Errorf("%w: bind one with ServerConfig.InitQueues or WorkerConfig.BindingKeys", err)
	}
	return err
}

// prepare fills empty fields in the caller's struct, then checks and encodes the task.
func (p *publisher) prepare(task *Task) (broker.Message, error) {
	if task == nil {
		return broker.Message{}, fmt.Errorf("publish: task is nil: %w", ErrRejected)
	}
	if task.RoutingKey == "" {
		task.RoutingKey = p.cfg.DefaultRoutingKey
	}
	if task.UUID == "" {
		task.UUID = newUUID()
	}
	if task.Name == "" {
		return broker.Message{}, ErrTaskName
	}
	var bad problems
	bad.name("Task.Name", task.Name, record.MaxName)
	bad.name("Task.UUID", task.UUID, record.MaxName)
	bad.name("Task.RoutingKey", task.RoutingKey, record.MaxName)
	if err := bad.err(); err != nil {
		return broker.Message{}, fmt.Errorf("%w: %w", ErrRejected, err)
	}
	headers, err := wire.Headers(task.Headers)
	if err != nil {
		return broker.Message{}, fmt.Errorf("%w: %w", ErrRejected, err)
	}
	body, err := encodeTask(task)
	if err != nil {
		return broker.Message{}, fmt.Errorf("%w: %w", ErrRejected, err)
	}
	if p.cfg.MaxBodyBytes > 0 && len(body) > p.cfg.MaxBodyBytes {
		return broker.Message{}, fmt.Errorf("%w: %d bytes, the maximum is %d",
			ErrTooLarge, len(body), p.cfg.MaxBodyBytes)
	}
	now := time.Now()
	notBefore, err := task.due(now)
	if err != nil {
		return broker.Message{}, fmt.Errorf("%w: %w", ErrRejected, err)
	}
	if !task.ExpiresAt.IsZero() {
		if headers == nil {
			headers = make(map[string]any, 1)
		}
		headers[record.HeaderExpiresAt] = record.FormatTime(task.ExpiresAt)
	}
	return broker.Message{
		Exchange:    p.cfg.Exchange,
		RoutingKey:  task.RoutingKey,
		ID:          task.UUID,
		Type:        task.Name,
		ContentType: contentType,
		Timestamp:   now,
		NotBefore:   notBefore,
		Headers:     headers,
		Body:        body,
	}, nil
}
