package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/engine"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/logs"
	"github.com/seed-416683c9/dispatcher/internal/publish"
)

// Server is one supervised connection to a broker, with a publisher and any number of workers. Make it with
// [NewServer]. All methods may be called by many goroutines at once.
type Server struct {
	cfg       ServerConfig
	log       *slog.Logger
	sup       *link.Supervisor
	publisher *publisher
	declarer  *link.Declarer
	courier   *publish.Courier // nil without an outbox
	counters  engine.Counters
	shared    *engine.Shared
	replayed  atomic.Int64 // dead letters
	farewell  sync.Once    // logs stranded tasks

	givenUp  chan struct{} // returned by NewServer; closed once, by watch
	watched  chan struct{} // closed when watch has returned
	declared chan struct{} // closed when declareAgain has returned

	mu      sync.Mutex         // guards what follows
	workers map[string]*Worker // nil value: the name is reserved by a NewWorker under way
	closing bool
}

// NewServer connects and returns a server that keeps the connection up.
//
// It blocks until the first connection stands, with Exchange and InitQueues declared, or until
// ServerConfig.ReconnectionRetries are used up: by default one try, 30 s at most. With ReconnectionRetriesForever and
// no broker it blocks for ever; use [NewServerContext] to bound it. An address that does not parse, or a refused
// declaration, is an error without retries. A queue whose node is down is retried like a connection.
//
// With ServerConfig.Outbox it tries once, at most 30 s. If the try fails for a reason that may be temporary, and a
// retry is left, NewServer returns a server that goes on connecting as in any other outage: publishes go to the outbox,
// Health reports [StateConnecting], and [Server.NewWorker] returns [ErrDisconnected]. The failed try counts as the
// first of the outage. Hooks.Disconnected is called at once, and Hooks.Reconnected when the connection stands. A
// declaration that the broker refuses then is in Health.Undeclared or retried; it is not an error here.
//
// The returned channel is closed once the connection is given up for good, after running tasks have ended or
// ServerConfig.ShutdownTimeout has passed. That happens only with ReconnectionRetries set. The server is useless then,
// so a program should exit and be started again, for instance by systemd or Kubernetes. Close and Shutdown do not close
// the channel. The channel is nil if NewServer returns an error.
//
// Errors of the configuration are [ErrExchangeRequired], [ErrDefaultRoutingKeyRequired], [ErrEmptyQueueName],
// [ErrEmptyBindingKey] and others that name the field.
func NewServer(cfg *ServerConfig) (*Server, chan struct{}, error) {
	return NewServerContext(context.Background(), cfg)
}

// NewServerContext is [NewServer] with a first connect that ends with ctx. Afterwards the server does not use ctx. With
// ServerConfig.Outbox, a deadline that passes during the first connect counts as a temporary failure. A canceled ctx is
// an error.
func NewServerContext(ctx context.Context, cfg *ServerConfig) (*Server, chan struct{}, error) {
	if cfg == nil {
		return nil, nil, errors.New("ServerConfig is nil")
	}
	if err := cfg.validate(); err != nil {
		return nil, nil, err
	}
	s := &Server{
		cfg:      cfg.withDefaults(),
		givenUp:  make(chan struct{}),
		watched:  make(chan struct{}),
		declared: make(chan struct{}),
		workers:  map[string]*Worker{},
		shared:   engine.NewShared(),
	}
	s.log = s.cfg.contain()
	s.sup = s.newLink()
	s.declarer = link.NewDeclarer(s.log, s.sup)
	var err error
	if s.publisher, s.courier, err = s.newPublisher(ctx); err != nil {
		return nil, nil, err
	}
	if err := s.sup.Start(ctx); err != nil {
		return nil, nil, err
	}
	s.courier.Start()
	go s.declareAgain()
	go s.watch()
	return s, s.givenUp, nil
}

// watch waits until supervision ends. If the connection was given up, it lets running tasks end and closes givenUp.
func (s *Server) watch() {
	defer close(s.watched)
	<-s.sup.Ended()
	if l, _ := s.sup.Now(); l.State != link.GivenUp {
		return
	}
	ctx, cancel := s.shutdownContext()
	defer cancel()
	_ = logs.Drain(s.log, false, s.calls(), func() error {
		return errors.Join(s.stopWorkers(ctx, false), s.courier.Stop(ctx))
	})
	close(s.givenUp)
}

// NewWorker makes a worker that runs the functions of tasks, each under the name it has in the map. It declares the
// worker's queue, the queues of its dead letters and suspects, and its bindings. The worker takes nothing before
// [Worker.Start]. Names of workers are unique in a server, and stay taken after Close.
//
// The signature of each function is checked here, once: see [TaskConfig]. NewWorker blocks for the declarations, at
// most 30 s, also while a queue's node is down; the error then Is [ErrUnavailable], and the name is free again.
//
// All problems are reported at once: [ErrWorkerNameRequired], [ErrWorkerQueueRequired], [ErrWorkerExists], and others
// that name field, task and parameter. Without a connection it returns [ErrDisconnected] at once; call it again when
// Hooks.Reconnected is called.
func (s *Server) NewWorker(cfg *WorkerConfig, tasks map[string]TaskConfig) (*Worker, error) {
	if cfg == nil {
		return nil, errors.New("WorkerConfig is nil")
	}
	session, err := s.sup.Session()
	if err != nil {
		return nil, err
	}
	plans, err := s.planTasks(cfg, tasks)
	if err = (problems{}).with(cfg.validate(), err).err(); err != nil {
		return nil, err
	}
	w := newWorker(s, cfg.withDefaults(), plans)
	if err := s.reserve(w.cfg.Name); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), link.OpenTimeout)
	defer cancel()
	declare := func(session broker.Session) error { return session.Declare(ctx, link.Whole(w.parts())) }
	if err := s.sup.WaitForQueues(ctx, session, declare); err != nil {
		s.register(w.cfg.Name, nil)
		if errors.Is(err, broker.ErrSessionLost) {
			return nil, fmt.Errorf("worker %q: %w: %w", w.cfg.Name, ErrDisconnected, err)
		}
		return nil, fmt.Errorf("worker %q: %w", w.cfg.Name, err)
	}
	if !s.register(w.cfg.Name, w) {
		return nil, ErrServerClosed
	}
	return w, nil
}

// reserve takes a worker's name while its queues are being declared.
func (s *Server) reserve(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return ErrServerClosed
	}
	if _, taken := s.workers[name]; taken {
		return ErrWorkerExists
	}
	s.workers[name] = nil
	return nil
}

// register puts w in the reserved place; nil gives the name back. It reports false if the server was closed meanwhile.
func (s *Server) register(name string, w *Worker) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w == nil || s.closing {
		delete(s.workers, name)
		return false
	}
	s.workers[name] = w
	return true
}

// GetWorkerByName returns the worker that NewWorker made under this name, started or not. It returns
// [ErrWorkerNotFound] if there is none.
func (s *Server) GetWorkerByName(name string) (*Worker, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.workers[name]; w != nil {
		return w, nil
	}
	return nil, ErrWorkerNotFound
}

// Close ends the server as [Server.Shutdown] does, bounded by ServerConfig.ShutdownTimeout. Calling it twice is safe. A
// task that calls Close waits for itself until that bound.
func (s *Server) Close() {
	ctx, cancel := s.shutdownContext()
	defer cancel()
	_ = s.Shutdown(ctx) // logged
}

// shutdownContext bounds a shutdown by ServerConfig.ShutdownTimeout.
func (s *Server) shutdownContext() (context.Context, context.CancelFunc) {
	if s.cfg.ShutdownTimeout < 0 {
		return context.WithCancel(context.Background())
	}
	return context.WithTimeout(context.Background(), s.cfg.ShutdownTimeout)
}

// Shutdown ends the server in this order: all workers stop taking tasks and give back those that have not started;
// running tasks end, and may still publish; their outcomes are settled; the tasks in the outbox are sent; publishes
// under way are confirmed; the connection is closed; the outcomes of PublishAsync are reported.
//
// For the outbox, Shutdown also waits for a lost connection, unless it is a [DurableOutbox]. The outbox may use the
// time that ctx has left. Shutdown stops sending earlier if the connection is given up or, without a deadline, once no
// task has left the outbox for ServerConfig.PublishTimeout. If tasks are left in an outbox that is not durable, the
// error Is [ErrOutboxNotEmpty].
//
// If the broker is the embedded one, Shutdown logs once how many tasks are left in it that no other server takes.
//
// When ctx ends first, the contexts of running tasks are cancelled with [ErrShutdown] as their cause, and they have one
// more second. Functions that still run then are left behind, and the error Is [ErrTasksRunning]: see
// [Worker.Shutdown]. Shutdown returns at most about fifteen seconds after ctx ended, connected or not. Concurrent calls
// all wait. The begin and the end are logged, and so is the error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	again := s.closing
	s.mu.Unlock()
	return logs.Drain(s.log, again, s.calls(), func() error { return s.shutdown(ctx) })
}

func (s *Server) shutdown(ctx context.Context) error {
	err := s.stopWorkers(ctx, true)
	s.courier.Flush(ctx)
	// The session ends last, and flushes what is in flight, because a draining task may still publish follow-up tasks
	// (gofort/dispatcher closed its publisher first and lost them).
	closing, cancel := link.WithGrace(ctx, link.CloseTimeout)
	defer cancel()
	// This bound holds even if ctx has no end: nobody waits for a publish that is in flight for longer than
	// PublishTimeout.
	closing, cancel = context.WithTimeout(closing, s.cfg.PublishTimeout+link.CloseTimeout)
	defer cancel()
	err = errors.Join(err, s.courier.Stop(closing))
	err = errors.Join(err, s.sup.Stop(closing))
	s.publisher.async.Wait(closing)
	for _, ended := range []chan struct{}{s.watched, s.declared} {
		select {
		case <-ended:
		case <-closing.Done():
		}
	}
	s.farewell.Do(s.logStranded)
	return err
}

// logStranded logs how many tasks are left in a broker that ends with the process, if no other server takes them.
func (s *Server) logStranded() {
	v, ok := s.cfg.Broker.(broker.Volatile)
	if !ok {
		return
	}
	switch tasks, dead := v.Stranded(); {
	case tasks > 0:
		s.log.Warn("tasks are left in the memory of this process and will be lost with it",
			"tasks", tasks, "dead_letters", dead)
	case dead > 0:
		s.log.Warn("dead letters are left in the memory of this process and will be lost with it", "dead_letters", dead)
	}
}

// stopWorkers shuts down all workers at the same time. With forGood no worker is made or started afterwards.
func (s *Server) stopWorkers(ctx context.Context, forGood bool) error {
	s.mu.Lock()
	if forGood {
		s.closing = true
	}
	var workers []*Worker
	for _, w := range s.workers {
		if w != nil {
			workers = append(workers, w)
		}
	}
	s.mu.Unlock()

	errs := make([]error, len(workers))
	var wg sync.WaitGroup
	for i, w := range workers {
		wg.Go(func() {
			if forGood {
				w.retire()
			}
			if sh := w.current(); sh != nil { // not Worker.Shutdown: the server's shutdown is logged as one
				errs[i] = sh.Stop(ctx)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// calls counts the task functions that are running, abandoned ones included.
func (s *Server) calls() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.workers {
		if w != nil {
			n += w.health().Running
		}
	}
	return n
}
