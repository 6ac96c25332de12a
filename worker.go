package dispatcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/text"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// Worker runs the tasks of one queue, at most WorkerConfig.Limit at once. Make it with [Server.NewWorker]. All methods
// may be called by many goroutines at once.
type Worker struct {
	server *Server
	cfg    WorkerConfig
	tasks  map[string]*taskPlan
	log    *slog.Logger

	mu      sync.Mutex // guards what follows; never held across I/O
	shift   *shift     // from Start until its last call has ended; otherwise nil
	retired bool       // the server was closed: never start again
}

// taskPlan is a registered task: how to call it, for how long, and how often.
type taskPlan struct {
	*callPlan
	timeout    time.Duration   // 0 = none
	retry      *verdict.Policy // nil = one attempt
	middleware []Middleware
}

// planTasks checks every task and returns all problems at once, each with the task's name.
func (s *Server) planTasks(worker *WorkerConfig, tasks map[string]TaskConfig) (map[string]*taskPlan, error) {
	var p problems
	plans := make(map[string]*taskPlan, len(tasks))
	for name, cfg := range tasks {
		p.addIf(name == "", errors.New("a task has an empty name"))
		p.name(fmt.Sprintf("name of task %.40q…", name), name, record.MaxName)
		timeout, err := cfg.timeout()
		p.addIf(err != nil, fmt.Errorf("task %q: %w", text.Excerpt(name), err))
		plan, err := newCallPlan(name, cfg.Function, cfg.TaskUUIDAsFirstArg)
		p.addIf(err != nil, err)
		if err := cfg.Retry.validate("TaskConfig.Retry"); err != nil {
			p.addIf(true, fmt.Errorf("task %q: %w", text.Excerpt(name), err))
		}
		p.addIf(slices.ContainsFunc(cfg.Middleware, isNil), fmt.Errorf("task %q: TaskConfig.Middleware has a nil element", text.Excerpt(name)))
		plans[name] = &taskPlan{
			callPlan: plan, timeout: timeout, middleware: slices.Concat(worker.Middleware, cfg.Middleware),
			retry: cmp.Or(cfg.Retry, worker.Retry, s.cfg.Retry).withDefaults(),
		}
	}
	return plans, p.err()
}

func isNil(m Middleware) bool { return m == nil }

// timeout returns the task's timeout, from whichever of the two fields is set.
func (c *TaskConfig) timeout() (time.Duration, error) {
	switch {
	case c.TimeoutSeconds != 0 && c.Timeout != 0:
		return 0, errors.New("TaskConfig.Timeout and TimeoutSeconds are both set")
	case c.TimeoutSeconds < 0 || c.Timeout < 0:
		return 0, errors.New("the timeout is negative")
	case c.TimeoutSeconds > maxSeconds:
		return 0, errors.New("TaskConfig.TimeoutSeconds is too large")
	case c.TimeoutSeconds > 0:
		return time.Duration(c.TimeoutSeconds) * time.Second, nil
	default:
		return min(c.Timeout, maxDuration), nil
	}
}

func newWorker(s *Server, cfg WorkerConfig, tasks map[string]*taskPlan) *Worker {
	return &Worker{server: s, cfg: cfg, tasks: tasks, log: s.log.With("queue", cfg.Queue, "worker", cfg.Name)}
}

// topology returns what the worker declares: its queue, the queues that belong to it, and its bindings.
func (w *Worker) topology() broker.Topology {
	t := broker.Topology{Queues: []broker.QueueSpec{
		{Name: w.cfg.Queue}, {Name: w.cfg.Queue + broker.DeadSuffix}, {Name: w.cfg.Queue + broker.SuspectsSuffix},
	}}
	for _, key := range w.cfg.BindingKeys {
		t.Bindings = append(t.Bindings, broker.Binding{Queue: w.cfg.Queue, Exchange: w.server.cfg.Exchange, Key: key})
	}
	return t
}

// parts returns the topology in parts that are declared one by one.
func (w *Worker) parts() []link.Part {
	t := w.topology()
	parts := make([]link.Part, len(t.Queues))
	for i, q := range t.Queues {
		parts[i] = link.Part{Owner: w.cfg.Name, Kind: "queue", Name: q.Name, Topology: broker.Topology{Queues: []broker.QueueSpec{q}}}
	}
	parts[0].Topology.Bindings = t.Bindings
	return parts
}

// running reports whether the worker is started.
func (w *Worker) running() bool { return w.current() != nil }

// current returns the worker's shift, or nil if it is not started.
func (w *Worker) current() *shift {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.shift
}

// consumeAgain consumes in a session that is not the worker's first, even if some of its queues cannot be declared.
func (w *Worker) consumeAgain(ctx context.Context, session broker.Session) (broker.Consumer, error) {
	if err := w.server.refused.Declare(ctx, session, w.parts()); err != nil {
		return nil, err
	}
	return session.Consume(ctx, w.consuming())
}

// consuming returns the options of the worker's consumers.
func (w *Worker) consuming() broker.ConsumeOptions {
	return broker.ConsumeOptions{Queue: w.cfg.Queue, Tag: w.cfg.Name, Prefetch: w.cfg.Limit}
}

// Start begins to take tasks. s must be the server that made the worker; it is an argument because gofort/dispatcher
// has it. Start blocks until the broker has accepted the consumer, at most 30 s, also while a queue's node is down.
//
// From then on the worker outlives lost connections: its queue is declared and consumed again in every new one. A queue
// that cannot be declared then is shown in Health.Undeclared, and consumed nevertheless if the broker allows it. After
// Close or Shutdown the worker can be started again.
//
// Errors:
//
//   - [ErrWorkerDisconnected]: there is no connection now.
//   - [ErrWorkerStarted]: the worker runs already, or calls of its former run have not ended.
//   - [ErrShutdown]: the worker was closed meanwhile.
//   - [ErrServerClosed]: the server was closed, or the connection was given up.
//   - [ErrUnavailable]: a queue's node stayed down.
//   - An error that Is ErrRejected and names the limit: the connection has as many consumers as it can have (RabbitMQ:
//     1,966, unless the node allows fewer channels).
func (w *Worker) Start(s *Server) error {
	if s != w.server {
		return fmt.Errorf("start worker %q: it was made by another server", w.cfg.Name)
	}
	sh := newShift(w)
	w.mu.Lock()
	retired, busy := w.retired, w.shift != nil
	if !retired && !busy {
		w.shift = sh
	}
	w.mu.Unlock()
	switch {
	case retired:
		return ErrServerClosed
	case busy:
		return ErrWorkerStarted
	}

	session, err := s.sup.Session()
	if err != nil {
		sh.neverBegan()
		if errors.Is(err, ErrServerClosed) {
			return err
		}
		return ErrWorkerDisconnected
	}
	ctx, cancel := context.WithTimeout(sh.taking, link.OpenTimeout)
	defer cancel()
	var consumer broker.Consumer
	err = s.sup.WaitForQueues(ctx, session, func(now broker.Session) (err error) {
		session = now
		consumer, err = sh.consume(ctx, session)
		return err
	})
	if err != nil {
		closed := sh.taking.Err() != nil
		sh.neverBegan()
		switch {
		case closed:
			return fmt.Errorf("start worker %q: %w", w.cfg.Name, ErrShutdown)
		case errors.Is(err, ErrServerClosed):
			return err
		case errors.Is(err, broker.ErrSessionLost):
			return ErrWorkerDisconnected
		}
		return fmt.Errorf("start worker %q: %w", w.cfg.Name, err)
	}
	sh.begin(session, consumer)
	return nil
}

// Close ends the worker as [Worker.Shutdown] does, bounded by ServerConfig.ShutdownTimeout. It does nothing if the
// worker was never started or is closed already.
func (w *Worker) Close() {
	ctx, cancel := w.server.shutdownContext()
	defer cancel()
	_ = w.Shutdown(ctx) // logged
}

// Shutdown takes no more tasks, gives back those that have not started, and waits for running ones until ctx ends. Then
// it cancels their contexts with [ErrShutdown] as their cause and gives them one more second. Tasks that return an
// error because of that are given back to the queue, not failed.
//
// Calls that still run then are left behind, and the error Is [ErrTasksRunning] and says how many. Their messages are
// unsettled and the broker delivers them again, except those of calls that were abandoned before, which are dead
// letters already.
//
// A task whose retry or dead letter the broker does not take is given back after half a minute, or when ctx ends.
//
// Shutdown returns at most about seven seconds after ctx ended, whatever the broker does. Each concurrent call has its
// own bound. It does nothing if the worker does not run. The begin and the end are logged, and so is the error.
func (w *Worker) Shutdown(ctx context.Context) error {
	sh := w.current()
	if sh == nil {
		return nil
	}
	again := sh.taking.Err() != nil
	return drain(w.log, again, w.health().Running, func() error { return sh.stop(ctx) }, fmt.Sprintf("worker %q: ", w.cfg.Name))
}

// retire forbids every later Start.
func (w *Worker) retire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.retired = true
}

// free lets the worker be started again.
func (w *Worker) free(sh *shift) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shift == sh {
		w.shift = nil
	}
}
