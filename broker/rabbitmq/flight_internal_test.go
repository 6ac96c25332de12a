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
		c, err := p.newCaller(ctx, p.publishSlots, exactDigits, nil)
		if err != nil {
			t.Fatal(err)
		}
		f := &flight{caller: c}
		if err := p.prepare(f, &m); err != nil {
			t.Fatal(err)
		}
		f.port, f.returned = &p.ports[delayPort], "312 NO_ROUTE"
		p.abandon(c)
		c.ctx = caller
		if err := p.rewrite(f); !errors.Is(err, broker.ErrNotSent) {
			t.Errorf("outcome: %v", err)
		}
		p.mu.Lock()
		if f.pipe != nil || f.written {
			t.Error("the message was written again")
		}
		p.mu.Unlock()
		c.release()
	}
}

// A message that a level returned is in no queue. It is not sent, whatever prevents it from being written again.
func TestReturnedMessageThatCannotBeWrittenAgainIsNotSent(t *testing.T) {
	t.Parallel()
	s := &session{dead: make(chan struct{}), closing: true}
	s.delays.memory = new(memory)
	s.publish = &publisher{s: s}
	f := &flight{caller: &caller{ctx: context.Background()}, delay: &delay{}}
	if err := s.publish.rewrite(f); !errors.Is(err, broker.ErrNotSent) || errors.Is(err, broker.ErrRejected) {
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
	p := &publisher{s: &session{}}
	pt := &p.ports[scoutPort]
	pt.p, pt.writing = p, newTurn()
	pt.current = &pipe{port: pt, ch: &amqp.Channel{}, byName: make(map[name]*flight), opened: time.Now()}
	first := &flight{id: "1", caller: &caller{}}
	if h := pt.seat(first); h != (hindrance{}) {
		t.Fatalf("the first: %+v", h)
	}
	if h := pt.seat(&flight{id: "2"}); h.after != first.released() {
		t.Errorf("the second: %+v", h)
	}
	first.orphan = true
	first.release()
	if h := pt.seat(&flight{id: "2"}); h.after != nil || h.pause <= 0 || h.pause > scoutPause {
		t.Errorf("the second, when nobody waits for the first: %+v", h)
	}
}

// A channel that was closed here still has its end to be handled when the client gives its number to the next one. The
// answers for that number belong to the next one, also afterwards.
func TestAnswersGoToTheLatestPipeOfAChannelNumber(t *testing.T) {
	t.Parallel()
	p := &publisher{s: &session{}}
	pt := &p.ports[defaultPort]
	pt.p, pt.writing = p, newTurn()
	outcomes := make(chan int, 2)
	c := &caller{p: p, done: func(i int, err error) { outcomes <- i }}
	c.open.Store(3)
	pipes := make([]*pipe, 2)
	for i := range pipes {
		pipes[i] = &pipe{port: pt, id: 7, byName: make(map[name]*flight), returns: make(chan amqp.Return, 1)}
		p.pipes = append(p.pipes, pipes[i])
		pipes[i].put(&flight{caller: c, i: i, quota: &quota{used: 2}}, time.Now())
	}
	p.hear([]answer{{channel: 7, tag: 1}})
	if i := <-outcomes; i != 1 {
		t.Error("the answer went to the pipe that has ended")
	}
	pt.bury(pipes[0], nil)
	if i := <-outcomes; i != 0 {
		t.Error("the message on the pipe that has ended has no outcome")
	}
	if p.pipeOf(7) != pipes[1] {
		t.Error("the end of a pipe removed its successor")
	}
}

// The context of a message ends while the message takes its place. The message is an orphan, and written whole.
func TestMessageWhoseContextEndsAsItIsWrittenKeepsItsContent(t *testing.T) {
	t.Parallel()
	p := &publisher{s: &session{}}
	pt := &p.ports[defaultPort]
	pt.p, pt.writing = p, newTurn()
	pt.current = &pipe{port: pt, ch: &amqp.Channel{}, byName: make(map[name]*flight), opened: time.Now()}
	f := &flight{caller: &caller{gone: true}, pub: amqp.Publishing{Body: []byte("body")}}
	if h := pt.seat(f); h != (hindrance{}) || !f.orphan || string(pt.pub.Body) != "body" {
		t.Errorf("%+v, orphan %v, body %q", h, f.orphan, pt.pub.Body)
	}
}
