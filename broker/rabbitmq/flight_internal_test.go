package rabbitmq

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// A level returns a message after its caller has gone. The content of the message has been dropped by then, so writing
// it again would send a message without ID and body.
func TestReturnedMessageThatNobodyWaitsForIsNotWrittenAgain(t *testing.T) {
	t.Parallel()
	url := os.Getenv("DISPATCHER_AMQP_CON")
	if url == "" {
		t.Skip("needs DISPATCHER_AMQP_CON, the URL of a RabbitMQ")
	}
	b, err := New(Config{URLs: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	opened, err := b.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s := opened.(*session)
	defer s.Close(ctx)
	p := s.publish
	for _, caller := range []context.Context{ctx, ended()} {
		m := broker.Message{RoutingKey: "rabbitmq.test.gone", ID: "m", NotBefore: time.Now().Add(time.Hour)}
		f, err := p.prepare(ctx, &m, exactDigits)
		if err != nil {
			t.Fatal(err)
		}
		f.port, f.returned = &p.ports[delayPort], "312 NO_ROUTE"
		s.publishing.add() // abandon gives it back
		p.abandon(f)
		if err := p.rewrite(caller, f); !errors.Is(err, broker.ErrNotSent) {
			t.Errorf("outcome: %v", err)
		}
		p.mu.Lock()
		if f.seat != nil || f.written {
			t.Error("the message was written again")
		}
		p.orphans--
		p.mu.Unlock()
		s.goroutines.done()
	}
}

// A message that a level returned is in no queue. It is not sent, whatever prevents it from being written again.
func TestReturnedMessageThatCannotBeWrittenAgainIsNotSent(t *testing.T) {
	t.Parallel()
	s := &session{dead: make(chan struct{}), closing: true}
	s.delays.memory = new(memory)
	s.publish = &publisher{s: s}
	f := &flight{delay: &delay{}}
	if err := s.publish.rewrite(context.Background(), f); !errors.Is(err, broker.ErrNotSent) || errors.Is(err, broker.ErrRejected) {
		t.Errorf("got %v, want not sent", err)
	}
}

func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// Other messages wait behind one that may be refused. If its caller has gone, they must pause before they try again.
func TestWaitBehindAnAbandonedScoutIsAPause(t *testing.T) {
	t.Parallel()
	p := &publisher{}
	pt := &p.ports[scoutPort]
	pt.p, pt.writing = p, newTurn()
	pt.current = &pipe{port: pt, ch: &amqp.Channel{}, byName: make(map[name]*flight), opened: time.Now()}
	first := &flight{id: "1", over: make(chan struct{})}
	if h := pt.seat(first); h != (hindrance{}) {
		t.Fatalf("the first: %+v", h)
	}
	if h := pt.seat(&flight{id: "2"}); h.after != first {
		t.Errorf("the second: %+v", h)
	}
	first.orphan = true
	close(first.over)
	if h := pt.seat(&flight{id: "2"}); h.after != nil || h.pause <= 0 || h.pause > scoutPause {
		t.Errorf("the second, when nobody waits for the first: %+v", h)
	}
}
