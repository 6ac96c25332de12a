package memory_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// A random crowd publishes, settles in every way, stops, closes, pauses, purges and kills. Then the books must balance.
// Every confirmed message was acked or dead-lettered exactly once, is left exactly once, or was purged. No message came
// a second time without the mark of a redelivery. No message has more losses than it had earlier deliveries.
//
// DISPATCHER_STRESS_SEED repeats the random choices of a run. The interleaving still differs every time.
func TestStress(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	if s := os.Getenv("DISPATCHER_STRESS_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		ok(t, err)
	}
	t.Logf("replay with DISPATCHER_STRESS_SEED=%d", seed)
	random := func(actor int) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(actor))) }

	x := &stress{T: t, b: memory.New(), confirmed: map[string]bool{}, ended: map[string]int{}, received: map[string][]reception{}}
	declare(t, x.open(), "q", "q.dead")
	const crowd = 4
	stop := make(chan struct{})
	var publishers, others sync.WaitGroup
	for i := range crowd {
		publishers.Go(func() { x.publish(random(i), i) })
		others.Go(func() { x.consume(random(crowd+i), stop) })
	}
	others.Go(func() { x.disturb(random(2*crowd), stop) })
	publishers.Wait()
	close(stop)
	others.Wait()
	x.balance()
}

// stress records the outcomes that the crowd has seen.
type stress struct {
	*testing.T
	b *memory.Broker

	mu        sync.Mutex
	confirmed map[string]bool        // IDs
	ended     map[string]int         // IDs that were acked or are dead letters
	deadCount int                    // the dead letters among them
	purged    int                    // the number of purged messages
	received  map[string][]reception // by ID and generation; each retry begins a new generation
	kills     int
}

type reception struct {
	redelivered bool
	losses      int
}

// open is like the helper open, but any goroutine may call it, because it does not call Fatal.
func (x *stress) open() broker.Session {
	s, err := x.b.Open(bg)
	if err != nil {
		x.Error(err)
	}
	return s
}

func (x *stress) note(f func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f()
}

func (x *stress) publish(r *rand.Rand, actor int) {
	s := x.open()
	for sent := 0; sent < 2000; {
		var batch []broker.Message
		for range 1 + r.IntN(5) {
			batch = append(batch, broker.Message{RoutingKey: "q", ID: fmt.Sprintf("%d-%d", actor, sent)})
			sent++
		}
		s.Publish(bg, batch, func(i int, err error) {
			switch {
			case err == nil:
				x.note(func() { x.confirmed[batch[i].ID] = true })
			case !errors.Is(err, broker.ErrNotSent) || !errors.Is(err, broker.ErrSessionLost):
				x.Errorf("publish: %v", err)
			}
		})
		if r.IntN(100) == 0 {
			x.b.KillSessions()
			x.note(func() { x.kills++ })
		}
		if s.Err() != nil {
			s = x.open()
		}
	}
	_ = s.Close(bg)
}

// consume runs one consumer after another.
func (x *stress) consume(r *rand.Rand, stop <-chan struct{}) {
	s := x.open()
	for {
		prefetch := 1 + r.IntN(8)
		c, err := s.Consume(bg, broker.ConsumeOptions{Queue: "q", Prefetch: prefetch})
		switch {
		case errors.Is(err, broker.ErrSessionLost):
			s = x.open()
			continue
		case err != nil:
			x.Errorf("consume: %v", err)
			return
		}
		open, goOn := x.receive(r, c, prefetch, stop)
		switch r.IntN(3) {
		case 0:
			_ = c.Stop(bg) // the session may be dead
			if _, alive := <-c.Deliveries(); alive {
				x.Error("a stopped consumer has deliveries in its channel")
			}
			for _, d := range open {
				x.settle(r, d)
			}
		case 1:
			_ = c.Close(bg)
			for _, d := range open {
				if err := d.Ack(); !errors.Is(err, broker.ErrDeliveryLost) {
					x.Errorf("ack after Close: %v", err)
				}
			}
		default:
			_ = s.Close(bg)
		}
		if !goOn {
			_ = s.Close(bg)
			return
		}
	}
}

// receive takes and settles deliveries for a while and returns those still open. goOn is false if stop is closed.
func (x *stress) receive(r *rand.Rand, c broker.Consumer, prefetch int, stop <-chan struct{}) (open []broker.Delivery, goOn bool) {
	for range 20 + r.IntN(200) {
		select {
		case d, alive := <-c.Deliveries():
			if !alive {
				return open, true
			}
			x.receivedOne(d)
			open = append(open, d)
			if n := len(open) + len(c.Deliveries()); n > prefetch {
				x.Errorf("%d unsettled, prefetch %d", n, prefetch)
			}
			if n := r.IntN(prefetch); n < len(open) {
				x.settle(r, open[n])
				open = slices.Delete(open, n, n+1)
			}
			if r.IntN(20) == 0 {
				_ = c.SetPrefetch(bg, 0)
				_ = c.SetPrefetch(bg, prefetch)
			}
		case <-stop:
			return open, false
		}
	}
	return open, true
}

func (x *stress) receivedOne(d broker.Delivery) {
	key := d.ID + "/" + d.CorrelationID
	x.note(func() { x.received[key] = append(x.received[key], reception{d.Redelivered, d.Losses}) })
}

func (x *stress) settle(r *rand.Rand, d broker.Delivery) {
	verb, settle := "ack", d.Ack
	switch r.IntN(10) {
	case 0, 1:
		verb, settle = "release", d.Release
	case 2:
		m := d.Forward()
		m.CorrelationID += "+" // the generation
		verb, settle = "retry", func() error { return d.Retry(bg, m, time.Duration(r.IntN(2))*time.Millisecond) }
	case 3:
		verb, settle = "dead-letter", func() error { return d.DeadLetter(bg, d.Forward()) }
	}
	err := settle()
	switch {
	case errors.Is(err, broker.ErrDeliveryLost):
	case err != nil:
		x.Errorf("%s: %v", verb, err)
	case verb == "ack":
		x.note(func() { x.ended[d.ID]++ })
	case verb == "dead-letter":
		x.note(func() { x.ended[d.ID]++; x.deadCount++ })
	}
	if err := d.Release(); !errors.Is(err, broker.ErrSettled) && !errors.Is(err, broker.ErrDeliveryLost) {
		x.Errorf("second settling: %v", err)
	}
}

// disturb takes messages with TryGet and purges the queue.
func (x *stress) disturb(r *rand.Rand, stop <-chan struct{}) {
	s := x.open()
	for {
		select {
		case <-stop:
			_ = s.Close(bg)
			return
		default:
		}
		for range r.IntN(50) {
			runtime.Gosched()
		}
		if s.Err() != nil {
			s = x.open()
		}
		if r.IntN(50) == 0 {
			if n, err := s.Purge(bg, "q"); err == nil {
				x.note(func() { x.purged += n })
			}
		}
		got, _ := s.TryGet(bg, "q", 3)
		for _, d := range got {
			x.receivedOne(d)
			x.settle(r, d)
		}
	}
}

// balance compares the recorded outcomes with the messages that are left.
func (x *stress) balance() {
	s := open(x.T, x.b)
	if dead := get(x.T, s, "q.dead"); len(dead) != x.deadCount {
		x.Errorf("%d dead letters, want %d", len(dead), x.deadCount)
	}
	c := consume(x.T, s, "q", 1)
	left := len(x.confirmed) - len(x.ended) - x.purged
	for i := range left {
		select { // delayed retries are still coming
		case d := <-c.Deliveries():
			x.receivedOne(d)
			x.ended[d.ID]++
			ok(x.T, d.Ack())
		case <-time.After(10 * time.Second):
			x.Fatalf("received %d of the %d messages that are left", i, left)
		}
	}
	if info, err := s.Inspect(bg, "q"); err != nil || info.Ready+info.Unsettled != 0 {
		x.Errorf("more messages are left than were confirmed: %+v %v", info, err)
	}
	for id, n := range x.ended {
		if n != 1 || !x.confirmed[id] {
			x.Errorf("%s: ended %d times, confirmed %t", id, n, x.confirmed[id])
		}
	}
	for key, receptions := range x.received {
		first := 0
		for _, r := range receptions {
			if !r.redelivered {
				first++
			}
			if r.losses >= len(receptions) {
				x.Errorf("%s: %d losses, received %d times", key, r.losses, len(receptions))
			}
		}
		if first > 1 {
			x.Errorf("%s: came %d times without the mark of a redelivery", key, first)
		}
	}
	x.Logf("%d confirmed, %d purged, %d dead letters, %d left at the end, %d kills",
		len(x.confirmed), x.purged, x.deadCount, left, x.kills)
}
