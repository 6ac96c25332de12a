// Command webservice takes mails over HTTP and sends them in the background:
//
//	go run ./examples/webservice 127.0.0.1:8080
//	curl -i -d to=ann@example.org http://127.0.0.1:8080/mails
//	curl -i http://127.0.0.1:8080/healthz
//
// It uses RabbitMQ if DISPATCHER_AMQP_CON is set, and the embedded broker otherwise. status maps the outcome of a
// publish to HTTP. On SIGTERM or Ctrl-C it first accepts no more requests, then takes no more tasks, then waits for the
// running ones.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

const queue = "dispatcher.example.mails"

// grace is the time that requests, and then tasks, have to end. A supervisor must wait longer than both before it kills
// the program.
const grace = 10 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	address := "127.0.0.1:8080"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	listener, err := net.Listen("tcp", address)
	if err == nil {
		fmt.Printf("listening on http://%s\n", listener.Addr())
		err = run(ctx, listener, config(os.Getenv("DISPATCHER_AMQP_CON")), os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "webservice:", err)
		os.Exit(1)
	}
}

func config(url string) *dispatcher.ServerConfig {
	cfg := &dispatcher.ServerConfig{
		Exchange:          "dispatcher.example",
		DefaultRoutingKey: queue,
		InitQueues:        []dispatcher.Queue{{Name: queue, BindingKeys: []string{queue}}},
		PublishTimeout:    5 * time.Second, // a client waits for the answer
		ShutdownTimeout:   grace,
	}
	if cfg.AMQPConnectionString = url; url == "" {
		cfg.Broker = memory.New()
	}
	return cfg
}

// run serves until ctx ends or the connection is given up.
func run(ctx context.Context, listener net.Listener, cfg *dispatcher.ServerConfig, out io.Writer) error {
	server, lost, err := dispatcher.NewServerContext(ctx, cfg)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer server.Close()
	send := func(ctx context.Context, to string) error {
		_, err := fmt.Fprintln(out, "mail to", to) // a real one takes ctx and ends with it
		return err
	}
	worker, err := server.NewWorker(&dispatcher.WorkerConfig{Name: "mailer", Queue: queue},
		map[string]dispatcher.TaskConfig{"send": {Function: send, TimeoutSeconds: 5}})
	if err == nil {
		err = worker.Start(server)
	}
	if err != nil {
		return errors.Join(err, listener.Close())
	}

	web := &http.Server{Handler: routes(server), ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(listener) }()
	select {
	case err = <-failed:
		return err
	case <-lost:
		err = errors.New("the connection to the broker was given up")
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	return errors.Join(err, web.Shutdown(ending)) // then server.Close
}

func routes(server *dispatcher.Server) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /mails", func(w http.ResponseWriter, r *http.Request) {
		task := dispatcher.NewTask("send", r.FormValue("to"))
		// A client that repeats a request sends the same key, so the task has the same uuid.
		// The function can then see that it has run.
		task.UUID = r.Header.Get("Idempotency-Key")
		err := server.PublishContext(r.Context(), task)
		code, text := status(err)
		if code == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "5")
		}
		w.WriteHeader(code)
		fmt.Fprintf(w, "%s: %s\n", task.UUID, text)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if health := server.Health(r.Context()); !health.OK() {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, "not ready:", health.State)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// status returns the HTTP status and text for the outcome of a publish. Details of the broker are only in the log.
func status(err error) (code int, text string) {
	switch {
	case err == nil, errors.Is(err, dispatcher.ErrInOutbox):
		return http.StatusAccepted, "accepted"
	case errors.Is(err, dispatcher.ErrTooLarge):
		return http.StatusRequestEntityTooLarge, "too large"
	case errors.As(err, new(*dispatcher.ArgumentError)):
		return http.StatusBadRequest, "this cannot be sent"
	case errors.Is(err, dispatcher.ErrNotSent): // certainly not sent: safe to repeat
		return http.StatusServiceUnavailable, "not accepted, try again"
	case errors.Is(err, dispatcher.ErrUnconfirmed): // perhaps sent: if repeated, it may run twice
		return http.StatusGatewayTimeout, "perhaps accepted; repeat it with the same Idempotency-Key"
	}
	return http.StatusInternalServerError, "not accepted" // ErrRejected: the program or the broker's setup is wrong
}
