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
	"github.com/seed-416683c9/dispatcher/internal/engine"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/logs"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/text"
)

// Worker runs the tasks of one queue, at most WorkerConfig.Limit at once. Make it with [Server.NewWorker]. All methods
// may be called by many goroutines at once.
type Worker struct {
	server  *Server
	cfg     WorkerConfig
	handler *taskHandler
	log     *slog.Logger

	mu      sync.Mutex    // guards what follows; never held across I/O
	shift   *engine.Shift // from Start until its last call has ended; otherwise nil
	retired bool          // the server was closed: never start again
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
		p.addIf(slices.ContainsFunc(cfg.Middleware, isNil),
			fmt.Errorf("task %q: TaskConfig.Middleware has a nil element", text.Excerpt(name)))
		chain := slices.Concat(worker.Middleware, cfg.Middleware)
		plans[name] = &taskPlan{callPlan: plan, middleware: chain, Plan: engine.Plan{
			Timeout: timeout, Retry: cmp.Or(cfg.Retry, worker.Retry, s.cfg.Retry).withDefaults(),
			WantsContext: plan != nil && plan.takesContext || len(chain) > 0,
		}}
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
		return 0, errors.New("TaskConfig.Timeout or TimeoutSeconds is negative")
	case c.TimeoutSeconds > maxSeconds:
		return 0, errors.New("TaskConfig.TimeoutSeconds is too large")
	case c.TimeoutSeconds > 0:
		return time.Duration(c.TimeoutSeconds) * time.Second, nil
	default:
		return min(c.Timeout, maxDuration), nil
	}
}

func newWorker(s *Server, cfg WorkerConfig, tasks map[string]*taskPlan) *Worker {
	return &Worker{
		server: s, cfg: cfg, log: s.log.With("queue", cfg.Queue, "worker", cfg.Name),
		handler: &taskHandler{worker: cfg.Name, tasks: tasks, maxBytes: s.cfg.MaxBodyBytes},
	}
}

// parts returns what the worker declares: its queue with its bindings, and the queues that belong to it.
func (w *Worker) parts() []link.Part {
	var parts []link.Part
	for _, queue := range []string{w.cfg.Queue, w.cfg.Queue + broker.DeadSuffix, w.cfg.Queue + broker.SuspectsSuffix} {
		parts = append(parts, link.Part{
			Owner:    w.cfg.Name,
			Kind:     "queue",
			Name:     queue,
			Topology: broker.Topology{Queues: []broker.QueueSpec{{Name: queue}}},
		})
	}
	for _, key := range w.cfg.BindingKeys {
		t := &parts[0].Topology
		t.Bindings = append(t.Bindings, broker.Binding{Queue: w.cfg.Queue, Exchange: w.server.cfg.Exchange, Key: key})
	}
	return parts
}

// newShift returns one run of the worker.
func (w *Worker) newShift() *engine.Shift {
	s, cfg := w.server, &w.cfg
	var shift *engine.Shift
	shift = engine.New(&engine.Config{
		Name:           cfg.Name,
		Queue:          cfg.Queue,
		Noun:           "task",
		Limit:          cfg.Limit,
		Prefetch:       cfg.Prefetch,
		AckEach:        cfg.AckEach,
		MaxAbandoned:   cfg.MaxAbandoned,
		UnknownMaxAge:  cfg.UnknownTaskMaxAge,
		PublishTimeout: s.cfg.PublishTimeout,
		Parts:          w.parts(),
		Link:           s.sup,
		Declarer:       s.declarer,
		Shared:         s.shared,
		Handler:        w.handler,
		Observer:       w.observer(),
		Counters:       &s.counters,
		Log:            w.log,
		Overlong:       w.handler.overlong,
		Ended: func() {
			s.declarer.Forget(cfg.Name)
			w.free(shift)
		},
	})
	return shift
}

// current returns the worker's shift, or nil if it is not started.
func (w *Worker) current() *engine.Shift {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.shift
}

// Start begins to take tasks. s must be the server that made the worker. It is an argument because it is one in
// gofort/dispatcher. Start blocks until the broker has accepted the consumer, at most 30 s, also while a queue's node
// is down.
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
		return fmt.Errorf("start worker %q: it was created by another server", w.cfg.Name)
	}
	sh := w.newShift()
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

	switch err := sh.Start(); {
	case err == nil:
		return nil
	case errors.Is(err, ErrServerClosed):
		return err
	case errors.Is(err, ErrDisconnected), errors.Is(err, broker.ErrSessionLost):
		return ErrWorkerDisconnected
	default:
		return fmt.Errorf("start worker %q: %w", w.cfg.Name, err)
	}
}

// Close ends the worker as [Worker.Shutdown] does, bounded by ServerConfig.ShutdownTimeout. It does nothing if the
// worker was never started or is closed already.
func (w *Worker) Close() {
	ctx, cancel := w.server.shutdownContext()
	defer cancel()
	_ = w.Shutdown(ctx) // logged
}

// Shutdown takes no more tasks, gives back those that have not started, and waits for running ones until ctx ends. Then
// it cancels their contexts with [ErrShutdown] as their cause and gives them one more second. Tasks that then return an
// error, any error, are given back to the queue and have not failed.
//
// Calls that still run then are left behind, and the error Is [ErrTasksRunning] and says how many. Their messages are
// unsettled and the broker delivers them again, except those of calls that were abandoned before, which are dead
// letters already.
//
// If the broker does not take the retry or dead letter of a task, the task is given back after half a minute, or when
// ctx ends.
//
// Shutdown returns at most about seven seconds after ctx ended, whatever the broker does. Each concurrent call has its
// own bound. It does nothing if the worker does not run. The begin and the end are logged, and so is the error.
func (w *Worker) Shutdown(ctx context.Context) error {
	sh := w.current()
	if sh == nil {
		return nil
	}
	again := sh.Stopping()
	stop := func() error { return sh.Stop(ctx) }
	return logs.Drain(w.log, again, w.health().Running, stop, fmt.Sprintf("worker %q: ", w.cfg.Name))
}

// retire forbids every later Start.
func (w *Worker) retire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.retired = true
}

// free lets the worker be started again.
func (w *Worker) free(sh *engine.Shift) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shift == sh {
		w.shift = nil
	}
}
