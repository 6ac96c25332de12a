package memory_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

var bg = context.Background()

func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func TestMessageTravelsUnchanged(t *testing.T) {
	t.Parallel()
	s := open(t, memory.New())
	ok(t, s.Declare(bg, broker.Topology{
		Exchanges: []broker.Exchange{{Name: "x", Kind: broker.Direct}},
		Queues:    []broker.QueueSpec{{Name: "q"}},
		Bindings:  []broker.Binding{{Queue: "q", Exchange: "x", Key: "k"}},
	}))
	sent := broker.Message{
		Exchange: "x", RoutingKey: "k", ID: "1", Type: "t", ContentType: "c", CorrelationID: "i", ReplyTo: "r",
		Timestamp: time.Now(), Headers: map[string]any{"h": int64(1)}, Body: []byte("body"),
	}
	ok(t, publish(s, sent))
	d := get(t, s, "q")[0]
	if !reflect.DeepEqual(d.Message, sent) || d.Queue != "q" || d.Redelivered || d.Losses != 0 {
		t.Fatalf("got %+v", d)
	}
}

func TestPublishOutcomes(t *testing.T) {
	t.Parallel()
	b := memory.New()
	s := open(t, b)
	dead := open(t, b)
	ok(t, dead.Close(bg))
	declare(t, s, "q")
	ok(t, s.Declare(bg, broker.Topology{Exchanges: []broker.Exchange{{Name: "lonely", Kind: broker.Direct}}}))
	long := strings.Repeat("n", 256)
	good := broker.Message{RoutingKey: "q", ID: "1"}
	for name, test := range map[string]struct {
		s    broker.Session
		ctx  context.Context
		m    broker.Message
		want []error
		text string
	}{
		"no such queue":    {s, bg, broker.Message{RoutingKey: "none", ID: "1"}, []error{broker.ErrRejected, broker.ErrUnroutable}, `"none"`},
		"no binding":       {s, bg, broker.Message{Exchange: "lonely", ID: "1"}, []error{broker.ErrRejected, broker.ErrUnroutable}, `"lonely"`},
		"no such exchange": {s, bg, broker.Message{Exchange: "none", ID: "1"}, []error{broker.ErrRejected}, `"none"`},
		"no ID":            {s, bg, broker.Message{RoutingKey: "q"}, []error{broker.ErrRejected}, "ID"},
		"long key":         {s, bg, broker.Message{RoutingKey: long, ID: "1"}, []error{broker.ErrRejected}, "routing key is 256 bytes long"},
		"long ID":          {s, bg, broker.Message{RoutingKey: "q", ID: long}, []error{broker.ErrRejected}, "message ID is 256 bytes long"},
		"long header":      {s, bg, broker.Message{RoutingKey: "q", ID: "1", Headers: map[string]any{long: nil}}, []error{broker.ErrRejected}, "header name"},
		"ended ctx":        {s, ended(), good, []error{broker.ErrNotSent, context.Canceled}, ""},
		"dead session":     {dead, bg, good, []error{broker.ErrNotSent, broker.ErrSessionLost, broker.ErrClosed}, ""},
	} {
		calls := 0
		test.s.Publish(test.ctx, []broker.Message{test.m}, func(i int, err error) {
			calls++
			for _, want := range test.want {
				if !errors.Is(err, want) {
					t.Errorf("%s: %v is not %v", name, err, want)
				}
			}
			outcomes := 0
			for _, outcome := range []error{broker.ErrNotSent, broker.ErrRejected, broker.ErrUnconfirmed} {
				if errors.Is(err, outcome) {
					outcomes++
				}
			}
			if outcomes != 1 || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%s: %v: %d outcomes, want text %q", name, err, outcomes, test.text)
			}
		})
		if calls != 1 {
			t.Errorf("%s: done ran %d times", name, calls)
		}
	}
	wantGet(t, s, "q")
}

func TestConsumeRefuses(t *testing.T) {
	t.Parallel()
	s := open(t, memory.New())
	declare(t, s, "q")
	o := broker.ConsumeOptions{Queue: "q", Tag: "t", Prefetch: 2}
	c, err := s.Consume(bg, o)
	ok(t, err)
	refused := func(o broker.ConsumeOptions, want error) {
		t.Helper()
		if _, err := s.Consume(bg, o); !errors.Is(err, want) {
			t.Errorf("%+v: %v, want %v", o, err, want)
		}
	}
	refused(o, broker.ErrRejected)
	refused(broker.ConsumeOptions{Queue: "q"}, broker.ErrRejected)
	refused(broker.ConsumeOptions{Queue: "q", Prefetch: 1 << 40}, broker.ErrRejected)
	refused(broker.ConsumeOptions{Queue: "none", Prefetch: 1}, broker.ErrQueueGone)
	for _, n := range []int{-1, 3} {
		if err := c.SetPrefetch(bg, n); !errors.Is(err, broker.ErrRejected) {
			t.Errorf("SetPrefetch(%d): %v", n, err)
		}
	}
	ok(t, c.Stop(bg))
	if err := c.SetPrefetch(bg, 1); !errors.Is(err, broker.ErrClosed) {
		t.Errorf("SetPrefetch after Stop: %v", err)
	}
	if _, err := s.Consume(bg, o); err != nil {
		t.Errorf("consume with the tag of a stopped consumer: %v", err)
	}
}

func TestDoneWaitsForRunningCallbacks(t *testing.T) {
	t.Parallel()
	b := memory.New()
	s := open(t, b)
	declare(t, s, "q")
	var outcomes []error
	msgs := make([]broker.Message, 100) // more than are published under one lock
	for i := range msgs {
		msgs[i] = broker.Message{RoutingKey: "q", ID: strconv.Itoa(i)}
	}
	s.Publish(bg, msgs, func(_ int, err error) {
		outcomes = append(outcomes, err)
		if n := b.KillSessions(); (n == 1) != (len(outcomes) == 1) {
			t.Errorf("killed %d sessions", n)
		}
		if err := s.Close(ended()); !errors.Is(err, context.Canceled) {
			t.Errorf("close while publishing: %v", err)
		}
		select {
		case <-s.Done():
			t.Error("Done is closed before the last callback has returned")
		default:
		}
	})
	<-s.Done()
	if outcomes[0] != nil || !errors.Is(outcomes[99], broker.ErrNotSent) {
		t.Errorf("outcomes %v", outcomes)
	}
	confirmed := slices.IndexFunc(outcomes, func(err error) bool { return err != nil })
	if n := b.Content().Total; n != confirmed {
		t.Errorf("%d messages in the queue, %d were confirmed", n, confirmed)
	}
	if err := s.Close(ended()); err != nil {
		t.Errorf("close of a dead session: %v", err)
	}
	if !errors.Is(s.Err(), broker.ErrSessionLost) || errors.Is(s.Err(), broker.ErrClosed) {
		t.Errorf("error of a killed session: %v", s.Err())
	}
}

func TestDeadSessionAnswersSessionLost(t *testing.T) {
	t.Parallel()
	s := open(t, memory.New())
	declare(t, s, "q")
	c := consume(t, s, "q", 1)
	ok(t, s.Close(bg))
	<-s.Done()
	<-c.Done()
	_, consumeErr := s.Consume(bg, broker.ConsumeOptions{Queue: "q", Prefetch: 1})
	_, getErr := s.TryGet(bg, "q", 1)
	_, inspectErr := s.Inspect(bg, "q")
	_, purgeErr := s.Purge(bg, "q")
	for i, err := range []error{
		s.Err(), s.Declare(bg, broker.Topology{}), consumeErr, getErr, inspectErr, purgeErr, s.Delete(bg, "q"),
		c.Err(), c.SetPrefetch(bg, 1), c.Stop(bg), c.Close(bg),
	} {
		if !errors.Is(err, broker.ErrSessionLost) || !errors.Is(err, broker.ErrClosed) {
			t.Errorf("method %d: %v", i, err)
		}
	}
	ok(t, s.Close(bg))
}
