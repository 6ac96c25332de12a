package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// site is a small web server with the faults of large ones, together with its client.
type site struct {
	url         string
	server      http.Server
	client      http.Client
	flaky, busy atomic.Int64 // requests so far
	repaired    atomic.Bool  // the broken page works now
}

func newSite() (*site, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &site{url: "http://" + listener.Addr().String(), client: http.Client{Transport: &http.Transport{}}}
	s.server.Handler = s
	go func() { _ = s.server.Serve(listener) }() // until close
	return s, nil
}

func (s *site) close() {
	_ = s.server.Close()
	s.client.CloseIdleConnections()
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch page := r.URL.Path; {
	case page == "/slow":
		<-r.Context().Done()
	case page == "/missing":
		w.WriteHeader(http.StatusNotFound)
	case page == "/broken" && !s.repaired.Load():
		w.WriteHeader(http.StatusInternalServerError)
	case page == "/flaky" && s.flaky.Add(1) <= 2:
		w.WriteHeader(http.StatusServiceUnavailable)
	case page == "/busy" && s.busy.Add(1) == 1:
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
	}
}

// fetch is the function of the tasks. Unless its error says otherwise, the retry policy decides.
func (s *site) fetch(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return dispatcher.Permanent(err)
	}
	response, err := s.client.Do(request) // ends with ctx, at the task's timeout
	if err != nil {
		return err
	}
	defer response.Body.Close()
	switch err = errors.New(response.Status); response.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusNotFound:
		return dispatcher.Permanent(err)
	case http.StatusTooManyRequests:
		if seconds, e := strconv.Atoi(response.Header.Get("Retry-After")); e == nil {
			return dispatcher.RetryAfter(time.Duration(seconds)*time.Second, err)
		}
	}
	return err
}
