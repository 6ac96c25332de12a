package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/contain"
	"github.com/seed-416683c9/dispatcher/internal/fault"
	"github.com/seed-416683c9/dispatcher/internal/link"
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

// PublishBatch publishes tasks in their order and waits for all of them. It returns one error a task, in the same
// order, or nil if all were published. Each error is as from [Server.PublishContext], and a bad task does not hold up
// the others. It is much faster than one call a task, since the broker confirms many at once.
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

// contentType is the content type of a task's body.
const contentType = "application/json"

// publisher turns tasks into confirmed messages.
type publisher struct {
	cfg     *ServerConfig
	sup     *link.Supervisor
	log     *slog.Logger
	stats   publishCounters
	courier *courier // nil without an outbox

	exchangeGone func() // declares everything again after the exchange was deleted; does not block
}

// publish returns one outcome a task. With wait it waits for a session until ctx ends or PublishTimeout has passed.
// With an outbox it never waits for one.
func (p *publisher) publish(caller context.Context, tasks []*Task, wait bool) []error {
	began := time.Now()
	ctx, cancel := p.cfg.bound(caller)
	defer cancel()
	errs := make([]error, len(tasks))
	out := outbound{errs: errs, index: make([]int, 0, len(tasks)), msgs: make([]broker.Message, 0, len(tasks))}
	for i, task := range tasks {
		msg, err := p.prepare(task)
		if err != nil {
			errs[i] = err
			continue
		}
		out.index, out.msgs = append(out.index, i), append(out.msgs, msg)
	}
	if p.courier != nil {
		p.sendOrKeep(caller, ctx, &out)
	} else {
		p.send(ctx, &out, wait)
	}
	for i, err := range errs {
		errs[i] = p.conclude(tasks[i], began, err)
	}
	return errs
}

// conclude counts an outcome, calls the hook and returns the error for the caller.
func (p *publisher) conclude(task *Task, began time.Time, err error) error {
	// The errors of gofort/dispatcher keep their whole text.
	if err != nil && err != ErrDisconnected && err != ErrTaskName && task != nil {
		err = fmt.Errorf("publish task %q (%q) with key %q: %w", text.Excerpt(task.Name), text.Excerpt(task.UUID), text.Excerpt(task.RoutingKey), advised(err))
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

// advised adds what to do about an error that has a usual cause.
func advised(err error) error {
	if errors.Is(err, ErrUnroutable) {
		return fmt.Errorf("%w: bind one with ServerConfig.InitQueues or WorkerConfig.BindingKeys", err)
	}
	return err
}

// outbound is a batch that is being published.
type outbound struct {
	msgs  []broker.Message // those without an outcome, in order
	index []int            // of msgs[i] in errs
	errs  []error
}

// send publishes until every message has its outcome. If the caller waits, messages that were certainly not sent
// because their session died go to the next session. All other outcomes are final.
func (p *publisher) send(ctx context.Context, out *outbound, wait bool) {
	var session broker.Session
	for len(out.msgs) > 0 {
		var err error
		if wait {
			session, err = p.sup.Await(ctx, session)
		} else {
			session, err = p.sup.Session()
		}
		if err != nil {
			for _, i := range out.index {
				out.errs[i] = err
			}
			return
		}
		p.sendOnce(ctx, session, out, func(err error) bool { return errors.Is(err, ErrDisconnected) && ctx.Err() == nil })
		if !wait {
			return
		}
	}
}

// sendOrKeep is send with an outbox. It keeps messages that cannot be sent now, or that must not overtake entries of
// the outbox. ctx is the caller's with PublishTimeout.
func (p *publisher) sendOrKeep(caller, ctx context.Context, out *outbound) {
	// When PublishTimeout has passed at a broker that blocks, there must be time left to keep the task.
	keeping, cancel := context.WithTimeout(caller, p.cfg.PublishTimeout+link.CloseTimeout)
	defer cancel()
	session, err := p.willing()
	p.courier.keep(keeping, p.courier.divert(out, err != nil))
	if len(out.msgs) == 0 {
		return
	}
	p.sendOnce(ctx, session, out, func(err error) bool { return errors.Is(err, ErrNotSent) && caller.Err() == nil })
	p.courier.keep(keeping, p.courier.divert(out, true))
}

// willing returns the session if it takes a message at once, or an error that says why there is none.
func (p *publisher) willing() (broker.Session, error) {
	session, err := p.sup.Session()
	if err == nil {
		if _, blocked := session.Blocked(); blocked {
			err = ErrNotSent
		}
	}
	return session, err
}

// sendOnce publishes through one session and notes the outcomes. It leaves in out the messages for whose outcome again
// reports true.
func (p *publisher) sendOnce(ctx context.Context, session broker.Session, out *outbound, again func(error) bool) {
	r := newReceipts(len(out.msgs))
	session.Publish(ctx, out.msgs, r.done)
	outcomes := r.wait(ctx)

	rest := 0
	for i, err := range outcomes {
		err = p.read(err)
		out.errs[out.index[i]] = err
		if again(err) {
			out.msgs[rest], out.index[rest] = out.msgs[i], out.index[i]
			rest++
		}
	}
	out.msgs, out.index = out.msgs[:rest], out.index[:rest]
}

// read translates a session's answer into an outcome.
func (p *publisher) read(err error) error {
	switch {
	case errors.Is(err, ErrNotSent) && errors.Is(err, broker.ErrSessionLost):
		err = fmt.Errorf("%w: %w", ErrDisconnected, err)
	case err != nil && !errors.Is(err, ErrNotSent) && !errors.Is(err, ErrRejected) && !errors.Is(err, ErrUnconfirmed):
		err = fmt.Errorf("%w: %w", ErrUnconfirmed, err) // an answer that does not say proves nothing
	}
	if errors.Is(err, broker.ErrExchangeGone) {
		p.exchangeGone()
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
		task.UUID = uuid.NewString()
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
		return broker.Message{}, fmt.Errorf("%w: %d bytes, the most is %d", ErrTooLarge, len(body), p.cfg.MaxBodyBytes)
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

// receipts gathers the outcomes of one call of Session.Publish.
type receipts struct {
	mu       sync.Mutex
	outcomes []error
	open     []bool // no outcome yet
	left     int
	all      chan struct{} // closed when left is 0
}

func newReceipts(n int) *receipts {
	r := &receipts{outcomes: make([]error, n), open: make([]bool, n), left: n, all: make(chan struct{})}
	for i := range r.open {
		r.open[i] = true
	}
	return r
}

// done is called by the session for each message. It ignores a second call for the same message, which breaks the
// seam's rule: the caller has already received the first outcome.
func (r *receipts) done(i int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.open[i] {
		return
	}
	r.open[i], r.outcomes[i] = false, err
	if r.left--; r.left == 0 {
		close(r.all)
	}
}

// wait returns the outcomes when all are there. Messages without one when ctx ends are unconfirmed; an outcome that
// comes later is dropped.
func (r *receipts) wait(ctx context.Context) []error {
	select {
	case <-r.all:
		return r.outcomes
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	outcomes := make([]error, len(r.outcomes))
	copy(outcomes, r.outcomes)
	for i, open := range r.open {
		if open {
			outcomes[i] = fault.EndedBefore(ErrUnconfirmed, ctx)
		}
	}
	return outcomes
}
