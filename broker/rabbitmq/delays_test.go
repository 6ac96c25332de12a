package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// on opens a session on the shared node.
func on(t testing.TB) broker.Session { return open(t, through(t, amqpURL(t), amqpURL(t).Host)) }

// workQueue declares a queue as a worker does, and deletes it when the test ends.
func workQueue(t testing.TB, s broker.Session) string {
	t.Helper()
	q := uniqueName()
	if err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: q}}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Delete(testContext(t), q) })
	return q
}

// exchange declares an exchange, and deletes it when the test ends.
func exchange(t testing.TB, s broker.Session, kind broker.ExchangeKind) string {
	t.Helper()
	x := uniqueName()
	if err := s.Declare(testContext(t), broker.Topology{Exchanges: []broker.Exchange{{Name: x, Kind: kind}}}); err != nil {
		t.Fatal(err)
	}
	ch := foreign(t)
	t.Cleanup(func() { _ = ch.ExchangeDelete(x, false, false) })
	return x
}

func bind(t testing.TB, s broker.Session, queue, exchange, key string) {
	t.Helper()
	if err := s.Declare(testContext(t), broker.Topology{Bindings: []broker.Binding{{Queue: queue, Exchange: exchange, Key: key}}}); err != nil {
		t.Fatal(err)
	}
}

// published publishes msgs and fails the test unless all are confirmed.
func published(t testing.TB, s broker.Session, msgs ...broker.Message) {
	t.Helper()
	for i, err := range outcomes(t, s, msgs...) {
		if err != nil {
			t.Fatalf("publish %q: %v", msgs[i].ID, err)
		}
	}
}

// due receives the next message and checks that it is not early.
func due(t testing.TB, c broker.Consumer, at time.Time) broker.Delivery {
	t.Helper()
	d := receive(t, c)
	if early := time.Until(at); early > 0 {
		t.Errorf("%q came %v early", d.ID, early)
	}
	return d
}

// RabbitMQ up to 3.13 takes a message for a cycle if its x-death says that it was in the queue before.
func TestRetryOfARetryOfARetryComesBack(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"", "quorum"} {
		s := open(t, newBroker(t, rabbitmq.Config{URLs: []string{amqpURL(t).String()}, QueueType: kind}))
		q := workQueue(t, s)
		published(t, s, broker.Message{RoutingKey: q, ID: "m", Type: "t", Headers: map[string]any{"mine": "kept"}, Body: []byte("body")})
		c := consume(t, s, q, 1)
		d := receive(t, c)
		for i := range 3 {
			const delay = 70 * time.Millisecond
			at := time.Now().Add(delay)
			if err := d.Retry(testContext(t), d.Forward(), delay); err != nil {
				t.Fatal(err)
			}
			d = due(t, c, at)
			if d.ID != "m" || d.Type != "t" || string(d.Body) != "body" || d.Exchange != "" || d.RoutingKey != q || len(d.Headers) != 1 || d.Headers["mine"] != "kept" || d.Redelivered {
				t.Errorf("kind %q, retry %d: %+v", kind, i+1, d)
			}
		}
		if err := d.Ack(); err != nil {
			t.Error(err)
		}
	}
}

func TestDelayedPublishComesToAllBoundQueues(t *testing.T) {
	t.Parallel()
	s := on(t)
	x, one, two, other := exchange(t, s, broker.Direct), workQueue(t, s), workQueue(t, s), workQueue(t, s)
	bind(t, s, one, x, "key.with.dots")
	bind(t, s, two, x, "key.with.dots")
	bind(t, s, other, x, "key")
	at := time.Now().Add(120 * time.Millisecond)
	m := broker.Message{Exchange: x, RoutingKey: "key.with.dots", ID: "m", NotBefore: at}
	published(t, on(t), m) // the sender has declared nothing
	for _, q := range []string{one, two} {
		d := due(t, consume(t, s, q, 1), at)
		if d.ID != "m" || d.Exchange != x || d.RoutingKey != "key.with.dots" || d.Headers != nil || d.Queue != q || !d.NotBefore.IsZero() {
			t.Errorf("got %+v", d)
		}
	}
	if info, err := s.Inspect(testContext(t), other); err != nil || info.Ready != 0 {
		t.Errorf("the queue of another key: %+v, %v", info, err)
	}
	// Publish to a queue by its name, with a header that every broker accepts and one that would divert the message.
	at = time.Now().Add(50 * time.Millisecond)
	headers := map[string]any{"n": int64(1), "x-death": []any{map[string]any{"queue": "dispatcher.delay.v2.4", "reason": "expired", "count": int64(1)}}}
	published(t, s, broker.Message{RoutingKey: other, ID: "direct", NotBefore: at, Headers: headers})
	d := due(t, consume(t, s, other, 1), at)
	if d.ID != "direct" || d.Exchange != "" || d.RoutingKey != other || len(d.Headers) != 1 || d.Headers["n"] != int64(1) {
		t.Errorf("got %+v", d)
	}
	if len(headers) != 2 {
		t.Error("the caller's headers were changed")
	}
}

// A fanout exchange routes every key. Only a session that has declared the exchange knows that.
func TestDelayedPublishToAFanoutComesToAllWhateverTheKey(t *testing.T) {
	t.Parallel()
	s := on(t)
	x, one, two := exchange(t, s, broker.Fanout), workQueue(t, s), workQueue(t, s)
	bind(t, s, one, x, "a")
	bind(t, s, two, x, "")
	at := time.Now().Add(50 * time.Millisecond)
	published(t, s, broker.Message{Exchange: x, RoutingKey: "any", ID: "m", NotBefore: at})
	for _, q := range []string{one, two} {
		if d := due(t, consume(t, s, q, 1), at); d.ID != "m" || d.Exchange != x || d.RoutingKey != "any" {
			t.Errorf("got %+v", d)
		}
	}
}

func TestWhatIsDueAlreadyIsPublishedAtOnce(t *testing.T) {
	t.Parallel()
	s := on(t)
	for name, at := range map[string]time.Time{"long ago": time.Unix(0, 0), "now": time.Now()} {
		err := outcomes(t, s, broker.Message{RoutingKey: uniqueName(), ID: name, NotBefore: at})[0]
		if !errors.Is(err, broker.ErrUnroutable) {
			t.Errorf("a message to nowhere, due %s: %v", name, err)
		}
	}
}

// The time that a message waits to be written is part of its delay.
func TestWhatBecomesDueWhileItWaitsIsPublishedAtOnce(t *testing.T) {
	t.Parallel()
	s := on(t)
	published(t, s, broker.Message{RoutingKey: queue(t, nil), ID: "first of all", NotBefore: time.Now().Add(time.Millisecond)}) // makes the levels
	release := rabbitmq.HoldDelays(s)
	told := make(chan error, 1)
	at := time.Now().Add(60 * time.Millisecond)
	go s.Publish(testContext(t), []broker.Message{{RoutingKey: uniqueName(), ID: "second", NotBefore: at}}, func(_ int, err error) { told <- err })
	<-time.After(time.Until(at) + time.Millisecond)
	release()
	if err := <-told; !errors.Is(err, broker.ErrUnroutable) {
		t.Errorf("a message to nowhere that became due meanwhile: %v", err)
	}
}

func TestDelayBeyondTheLongestIsRefusedAndLeavesTheDeliveryOpen(t *testing.T) {
	t.Parallel()
	s := on(t)
	q := workQueue(t, s)
	fill(t, s, q, 1)
	d := receive(t, consume(t, s, q, 1))
	err := d.Retry(testContext(t), d.Forward(), broker.MaxDelay+1)
	if !errors.Is(err, broker.ErrRejected) || !strings.Contains(err.Error(), "the maximum is 8784h") {
		t.Errorf("retry: %v", err)
	}
	if err := d.Ack(); err != nil {
		t.Errorf("ack: %v", err)
	}
	err = outcomes(t, s, broker.Message{RoutingKey: q, ID: "m", NotBefore: time.Now().Add(broker.MaxDelay + time.Minute)})[0]
	if !errors.Is(err, broker.ErrRejected) || !strings.Contains(err.Error(), "the maximum is 8784h") {
		t.Errorf("publish: %v", err)
	}
}

func TestBrokerWithoutDelaysSaysSo(t *testing.T) {
	t.Parallel()
	s := rabbitmq.WithoutDelay(on(t))
	q := workQueue(t, s)
	err := outcomes(t, s, broker.Message{RoutingKey: q, ID: "m", NotBefore: time.Now().Add(time.Hour)})[0]
	if !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, broker.ErrRejected) {
		t.Errorf("publish: %v", err)
	}
	published(t, s, broker.Message{RoutingKey: q, ID: "m", NotBefore: time.Now()})
	c := consume(t, s, q, 1)
	d := receive(t, c)
	if err := d.Retry(testContext(t), d.Forward(), 1); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("retry: %v", err)
	}
	if err := d.Retry(testContext(t), d.Forward(), 0); err != nil {
		t.Errorf("retry without delay: %v", err)
	}
	if err := receive(t, c).Ack(); err != nil {
		t.Error(err)
	}
}

// A queue that another program has declared has no binding for delays. A delayed retry needs its queue to exist.
func TestDelayedRetryToAQueueOfAnotherProgram(t *testing.T) {
	t.Parallel()
	q := queue(t, nil)
	s := on(t)
	fill(t, s, q, 1)
	c := consume(t, s, q, 1)
	d := receive(t, c)
	at := time.Now().Add(20 * time.Millisecond)
	if err := d.Retry(testContext(t), d.Forward(), 20*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := due(t, c, at).Ack(); err != nil {
		t.Error(err)
	}

	gone := queue(t, nil)
	fill(t, s, gone, 1)
	ds, err := s.TryGet(testContext(t), gone, 1)
	if err != nil || len(ds) != 1 {
		t.Fatal(ds, err)
	}
	if _, err := foreign(t).QueueDelete(gone, false, false, false); err != nil {
		t.Fatal(err)
	}
	if err := ds[0].Retry(testContext(t), ds[0].Forward(), time.Hour); !errors.Is(err, broker.ErrUnroutable) {
		t.Errorf("to a deleted queue: %v", err)
	}
}

// Another program deletes a consumed queue and declares it again, without the binding that retries need.
func TestDelayedRetryToAQueueThatAnotherProgramMadeAgain(t *testing.T) {
	t.Parallel()
	s, ch := on(t), foreign(t)
	q := workQueue(t, s)
	fill(t, s, q, 1)
	c := consume(t, s, q, 1)
	d := receive(t, c)
	if err := d.Retry(testContext(t), d.Forward(), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	receive(t, c)
	if _, err := ch.QueueDelete(q, false, false, false); err != nil {
		t.Fatal(err)
	}
	wait(t, "the consumer's end", c.Done())
	if _, err := ch.QueueDeclare(q, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	fill(t, s, q, 1)
	c = consume(t, s, q, 1)
	d = receive(t, c)
	const delay = 20 * time.Millisecond
	at := time.Now().Add(delay)
	if err := d.Retry(testContext(t), d.Forward(), delay); err != nil {
		t.Fatal(err)
	}
	if err := due(t, c, at).Ack(); err != nil {
		t.Error(err)
	}
}

func TestQueueDeclaredAgainGetsWhatIsDue(t *testing.T) {
	t.Parallel()
	s := on(t)
	q := workQueue(t, s)
	fill(t, s, q, 1)
	d := receive(t, consume(t, s, q, 1))
	const delay = 3 * time.Second // long enough to make the levels, and to delete and declare the queue
	at := time.Now().Add(delay)
	if err := d.Retry(testContext(t), d.Forward(), delay); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(testContext(t), q); err != nil {
		t.Fatal(err)
	}
	if err := s.Declare(testContext(t), broker.Topology{Queues: []broker.QueueSpec{{Name: q}}}); err != nil {
		t.Fatal(err)
	}
	if d := due(t, consume(t, s, q, 1), at); d.ID != "0" || d.RoutingKey != q {
		t.Errorf("got %+v", d)
	}
}

// stray takes n undeliverable messages of a test from their queue, and leaves those of other tests.
func stray(t testing.TB, s broker.Session, prefix string, n int) map[string]broker.Message {
	t.Helper()
	got, ctx := make(map[string]broker.Message), testContext(t)
	for tick := time.Tick(20 * time.Millisecond); len(got) < n; {
		ds, err := s.TryGet(ctx, broker.Undeliverable, 1000)
		if err != nil {
			t.Fatalf("%d of %d: %v", len(got), n, err)
		}
		for _, d := range ds {
			settle := d.Release
			if strings.HasPrefix(d.ID, prefix) {
				got[d.ID], settle = d.Message, d.Ack
			}
			if err := settle(); err != nil {
				t.Error(err)
			}
		}
		<-tick
	}
	return got
}

// RabbitMQ keeps messages that it cannot pass on. Once it keeps 32 of a queue, it passes on nothing else from there.
func TestUndeliverableMessagesHoldUpNobody(t *testing.T) {
	t.Parallel()
	s := on(t)
	good, gone, x := workQueue(t, s), workQueue(t, s), exchange(t, s, broker.Direct)
	bind(t, s, gone, x, "key")
	const lost, found, delay = 100, 50, 3 * time.Second
	at := time.Now().Add(delay)
	prefix := uniqueName()
	msgs := make([]broker.Message, lost)
	for i := range msgs {
		msgs[i] = broker.Message{Exchange: x, RoutingKey: "key", ID: fmt.Sprint(prefix, i), NotBefore: at, Headers: map[string]any{"i": int64(i)}}
		if i%2 == 0 {
			msgs[i].Exchange, msgs[i].RoutingKey = "", gone
		}
	}
	published(t, s, msgs...)
	if err := s.Delete(testContext(t), gone); err != nil {
		t.Fatal(err)
	}
	later := make([]broker.Message, found)
	for i := range later {
		later[i] = broker.Message{RoutingKey: good, ID: fmt.Sprint(i), NotBefore: at}
	}
	published(t, s, later...)
	c := consume(t, s, good, found)
	for range found {
		if err := due(t, c, at).Ack(); err != nil {
			t.Error(err)
		}
	}
	if late := time.Since(at); late > 10*time.Second {
		t.Errorf("the messages to the good queue came %v late", late)
	}
	for id, m := range stray(t, s, prefix, lost) {
		i := m.Headers["i"].(int64)
		delete(m.Headers, "x-delivery-count") // added by the queue in which the message was found
		if want := msgs[i]; id != want.ID || m.Exchange != want.Exchange || m.RoutingKey != want.RoutingKey || len(m.Headers) != 1 {
			t.Fatalf("got %+v, want %+v", m, want)
		}
	}
}

func TestRandomDelaysAllArriveAndNoneEarly(t *testing.T) {
	t.Parallel()
	s := on(t)
	q := workQueue(t, s)
	const n = 300
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	at := make(map[string]time.Time, n)
	msgs := make([]broker.Message, n)
	for i := range msgs {
		id := fmt.Sprint(i)
		at[id] = time.Now().Add(time.Duration(random.Int64N(int64(2 * time.Second))))
		msgs[i] = broker.Message{RoutingKey: q, ID: id, NotBefore: at[id]}
	}
	published(t, s, msgs...)
	c := consume(t, s, q, n)
	for range n {
		d := receive(t, c)
		due, ok := at[d.ID]
		if early := time.Until(due); !ok || early > 0 {
			t.Errorf("%q: expected %t, %v early", d.ID, ok, early)
		}
		delete(at, d.ID)
		if err := d.Ack(); err != nil {
			t.Error(err)
		}
	}
}

// Headers that fill the frame would leave no room for the headers that RabbitMQ adds on the way.
func TestDelayedHeadersLeaveRoomForTheBrokersOwn(t *testing.T) {
	t.Parallel()
	s := on(t)
	q := workQueue(t, s)
	const delay = (1<<11 - 1) * 16 * time.Millisecond // 32 s in eleven hops, longer than the test
	large := broker.Message{RoutingKey: q, ID: "large", Headers: map[string]any{"h": strings.Repeat("v", 130_000)}, NotBefore: time.Now().Add(delay)}
	if err := outcomes(t, s, large)[0]; !errors.Is(err, broker.ErrRejected) {
		t.Errorf("got %v", err)
	}
	// Headers that just fit pass seven hops and can be read.
	large.Headers["h"] = strings.Repeat("v", 131072-4096-33*320-300)
	large.NotBefore = time.Now().Add((1<<7 - 1 - 2) * 16 * time.Millisecond)
	published(t, s, large)
	if d := due(t, consume(t, s, q, 1), large.NotBefore); d.ID != "large" || len(d.Headers) != 1 {
		t.Errorf("got %q with %d headers", d.ID, len(d.Headers))
	}
}

// Callers of a session that need the levels at the same time share one declaration. A caller that gives up does not
// fail the others.
func TestFirstDelaysOfASessionShareOneDeclaration(t *testing.T) {
	t.Parallel()
	q := queue(t, nil)
	for range 3 {
		s := on(t)
		ctx, cancel := context.WithCancel(testContext(t))
		const n = 20
		told := make(chan error, n)
		for i := range n {
			ctx := ctx
			if i > 0 {
				ctx = testContext(t)
			}
			go s.Publish(ctx, []broker.Message{{RoutingKey: q, ID: fmt.Sprint(i), NotBefore: time.Now().Add(time.Millisecond)}}, func(i int, err error) { told <- err })
		}
		cancel()
		failed := 0
		for range n {
			if err := <-told; err != nil {
				failed++
				if !errors.Is(err, broker.ErrNotSent) || !errors.Is(err, context.Canceled) {
					t.Errorf("publish: %v", err)
				}
			}
		}
		if failed > 1 {
			t.Errorf("%d publishes failed, and only one was cancelled", failed)
		}
	}
}
