package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker/brokertest"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// service runs the program on a broker that can fail.
func service(t *testing.T) (address string, chaos *brokertest.Chaos, lines <-chan string, stop func() error) {
	chaos = brokertest.NewChaos(memory.New(), nil)
	cfg := config("")
	cfg.Broker, cfg.Logger = chaos, dispatcher.SlogLogger(slog.New(slog.DiscardHandler))
	cfg.PublishTimeout = 200 * time.Millisecond
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	out := make(lineWriter, 10)
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, listener, cfg, out) }()
	stop = func() error { cancel(); return <-ended }
	t.Cleanup(cancel)
	return "http://" + listener.Addr().String(), chaos, out, stop
}

type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) { w <- string(bytes.TrimSpace(p)); return len(p), nil }

func request(t *testing.T, r *http.Request) (int, http.Header, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, answer.Header, string(body)
}

func post(t *testing.T, address, key, to string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", address+"/mails", strings.NewReader(url.Values{"to": {to}}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Idempotency-Key", key)
	return request(t, r)
}

func TestAMailIsAcceptedAndSent(t *testing.T) {
	t.Parallel()
	address, chaos, lines, stop := service(t)
	if code, _, body := post(t, address, "key-1", "ann@example.org"); code != http.StatusAccepted || body != "key-1: accepted\n" {
		t.Errorf("%d %s", code, body)
	}
	if line := <-lines; line != "mail to ann@example.org" {
		t.Error(line)
	}
	if code, _, body := post(t, address, "", "\xff"); code != http.StatusBadRequest {
		t.Errorf("text that is not UTF-8: %d %s", code, body)
	}
	healthz, err := http.NewRequestWithContext(t.Context(), "GET", address+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	if code, _, body := request(t, healthz); code != http.StatusOK || body != "ok\n" {
		t.Errorf("health: %d %s", code, body)
	}

	chaos.FailOpen(errors.New("away"))
	chaos.Kill()
	code, header, body := post(t, address, "key-2", "bob@example.org")
	if code != http.StatusServiceUnavailable || header.Get("Retry-After") == "" || !strings.Contains(body, "try again") {
		t.Errorf("while the broker is away: %d %v %s", code, header, body)
	}
	if code, _, _ := request(t, healthz); code != http.StatusServiceUnavailable {
		t.Errorf("health while the broker is away: %d", code)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestEveryOutcomeHasItsStatus(t *testing.T) {
	t.Parallel()
	for want, errs := range map[int][]error{
		http.StatusAccepted:              {nil, dispatcher.ErrInOutbox},
		http.StatusRequestEntityTooLarge: {dispatcher.ErrTooLarge},
		http.StatusBadRequest:            {&dispatcher.ArgumentError{}},
		http.StatusServiceUnavailable:    {dispatcher.ErrNotSent, dispatcher.ErrDisconnected, dispatcher.ErrServerClosed, dispatcher.ErrOutboxFull, fmt.Errorf("%w: %w", dispatcher.ErrNotSent, dispatcher.ErrUnavailable)},
		http.StatusGatewayTimeout:        {dispatcher.ErrUnconfirmed, dispatcher.ErrNacked},
		http.StatusInternalServerError:   {dispatcher.ErrUnroutable, dispatcher.ErrRejected},
	} {
		for _, err := range errs {
			if code, text := status(err); code != want || text == "" {
				t.Errorf("%v: %d %s, want %d", err, code, text, want)
			}
		}
	}
}
