// Command webservice takes mails over HTTP and sends them in the background:
//
//	go run ./examples/webservice 127.0.0.1:8080
//	curl -i -d to=ann@example.org http://127.0.0.1:8080/mails
//	curl -i http://127.0.0.1:8080/healthz
//
// It uses RabbitMQ if DISPATCHER_AMQP_CON is set, and the embedded broker otherwise. status maps the outcome of a publish to HTTP.
// SIGTERM or Ctrl-C ends it: no new requests, then no new tasks, then the end of those that run.
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

// grace is how long requests, and then tasks, may take to end. Whatever kills this program must wait longer than both.
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
		PublishTimeout:    5 * time.Second, // somebody waits for the answer
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
		_, err := fmt.Fprintln(out, "mail to", to) // a real one is given ctx, and ends with it
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
	return errors.Join(err, web.Shutdown(ending)) // and then server.Close
}

func routes(server *dispatcher.Server) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /mails", func(w http.ResponseWriter, r *http.Request) {
		task := dispatcher.NewTask("send", r.FormValue("to"))
		// A client that repeats a request sends the same key, so the task has the same uuid: the function can see that it has run.
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

// status is what the outcome of a publish means to a client. The text tells nothing of the broker: that is in the log.
func status(err error) (code int, text string) {
	switch {
	case err == nil, errors.Is(err, dispatcher.ErrInOutbox):
		return http.StatusAccepted, "accepted"
	case errors.Is(err, dispatcher.ErrTooLarge):
		return http.StatusRequestEntityTooLarge, "too large"
	case errors.As(err, new(*dispatcher.ArgumentError)):
		return http.StatusBadRequest, "this cannot be sent"
	case errors.Is(err, dispatcher.ErrNotSent): // certainly not: to repeat it is safe
		return http.StatusServiceUnavailable, "not accepted, try again"
	case errors.Is(err, dispatcher.ErrUnconfirmed): // perhaps: it may run, and to repeat it may run it twice
		return http.StatusGatewayTimeout, "perhaps accepted; repeat it with the same Idempotency-Key"
	}
	return http.StatusInternalServerError, "not accepted" // ErrRejected: the program, or the broker's setup, is wrong
}
