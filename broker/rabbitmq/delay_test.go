package rabbitmq

import (
	"errors"
	"math/bits"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"pgregory.net/rapid"

	"github.com/seed-416683c9/dispatcher/broker"
)

// anyDelay draws delays of all magnitudes with equal probability.
func anyDelay(t *rapid.T) time.Duration {
	magnitude := rapid.IntRange(0, 54).Draw(t, "magnitude")
	return min(broker.MaxDelay, time.Duration(rapid.Int64Range(1, 1<<magnitude).Draw(t, "delay")))
}

// held returns the shortest time for which the levels and the exit hold a message of that many ticks. Each of them may
// be a millisecond short.
func held(ticks uint64) time.Duration {
	d := time.Duration(1<<exitLevel-1) * time.Millisecond
	for level := lowestLevel; level <= highestLevel; level++ {
		if ticks>>(level-lowestLevel)&1 == 1 {
			d += time.Duration(1<<level-1) * time.Millisecond
		}
	}
	return d
}

func TestDelayIsNeverShorterAndHardlyLongerThanAsked(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := anyDelay(t)
		exact, retry := ticks(d, exactDigits), ticks(d, retryDigits)
		if held(exact) < d || held(retry) < d {
			t.Fatalf("%v becomes %v, as a retry %v", d, held(exact), held(retry))
		}
		if late := exitTime + time.Duration(exact)*grain - d; late > 3*grain {
			t.Errorf("%v is %v late", d, late)
		}
		if late := exitTime + time.Duration(retry)*grain - d; late > d/8+3*grain {
			t.Errorf("as a retry %v is %v late", d, late)
		}
		if n := bits.OnesCount64(retry); n > retryDigits {
			t.Errorf("a retry after %v waits at %d levels", d, n)
		}
		if exact > maxTicks || retry > maxTicks {
			t.Errorf("%v is longer than all levels together", d)
		}
	})
}

// A longer delay is not due before a shorter one.
func TestDelaysKeepTheirOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyDelay(t), anyDelay(t)
		for _, digits := range []int{exactDigits, retryDigits} {
			if (a <= b) != (ticks(a, digits) <= ticks(b, digits)) && ticks(a, digits) != ticks(b, digits) {
				t.Errorf("%v and %v change places", a, b)
			}
		}
	})
}

func TestTicksAtTheEdges(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		d           time.Duration
		exact, less uint64
	}{
		{1, 0, 0}, // the exit alone
		{15 * time.Millisecond, 0, 0},
		{15*time.Millisecond + 1, 1, 1}, // the millisecond that RabbitMQ may cut off
		{46 * time.Millisecond, 1, 1},
		{46*time.Millisecond + 1, 2, 2},
		{78 * time.Millisecond, 2, 2},
		{17*32*time.Millisecond + 14*time.Millisecond, 18, 18},
		{16*32*time.Millisecond + 15*time.Millisecond, 17, 18},
	} {
		if exact, less := ticks(test.d, exactDigits), ticks(test.d, retryDigits); exact != test.exact || less != test.less {
			t.Errorf("%v: %d and %d, want %d and %d", test.d, exact, less, test.exact, test.less)
		}
	}
	if n := ticks(broker.MaxDelay, retryDigits); n >= maxTicks || n>>(levelCount-1) != 1 {
		t.Errorf("the longest retry is %b", n)
	}
	if n := ticks(1<<63-1, exactDigits); n != maxTicks {
		t.Errorf("the longest duration is %b", n)
	}
}

// matches reports whether a topic exchange would match key with pattern. It knows # only at the end.
func matches(pattern, key string) bool {
	p, k := strings.Split(pattern, "."), strings.Split(key, ".")
	if last := len(p) - 1; p[last] == "#" {
		p = p[:last]
		k = k[:min(len(k), last)]
	}
	if len(p) != len(k) {
		return false
	}
	for i := range p {
		if p[i] != "*" && p[i] != k[i] {
			return false
		}
	}
	return true
}

// A probe takes the way of all messages, and then reaches only its own session.
func TestProbesComeToTheirSession(t *testing.T) {
	t.Parallel()
	key := probeKey("7", "me")
	for level := firstLevel(probeTicks); level >= lowestLevel; level-- {
		if !matches(levelPattern(level, "1"), key) {
			t.Errorf("the probe passes level %d", level)
		}
	}
	if !matches(exitPattern("7"), key) || !matches(deliverPattern(probeWord), key) || !matches(probePattern("me"), key) || matches(probePattern("you"), key) {
		t.Errorf("%q does not match %q, or matches another", key, probePattern("me"))
	}
}

func TestProbesTellWhatIsLate(t *testing.T) {
	t.Parallel()
	var p probes
	now := time.Now()
	after := func(d time.Duration) time.Time { return now.Add(d) }
	ids := func(at time.Time, n int) map[string]string {
		t.Helper()
		got := p.next(at)
		if len(got) != n {
			t.Fatalf("to be probed: %v, want %d", got, n)
		}
		for _, id := range got {
			p.left(id, at)
		}
		return got
	}
	late := func(at time.Time, want string) {
		t.Helper()
		if got := p.late(at); got != want {
			t.Errorf("late: %q, want %q", got, want)
		}
	}
	ids(now, 0)
	p.use("0", now)
	p.use("f", after(time.Hour))
	first := ids(now, 2)
	late(after(probeMargin), "")
	late(after(12*time.Second), "messages that were due 12s ago are held up in the levels 5 to 10 or in dispatcher.delay.v2.exit.0, dispatcher.delay.v2.exit.f")
	p.came(first["0"])
	late(after(13*time.Second), "messages that were due 13s ago are held up in the levels 5 to 10 or in dispatcher.delay.v2.exit.f")
	p.came(ids(after(30*time.Second), 2)["0"])
	late(after(31*time.Second), "messages that were due 31s ago are held up in the levels 5 to 10 or in dispatcher.delay.v2.exit.f")
	third := ids(after(60*time.Second), 2)
	p.came(third["0"])
	p.came(ids(after(90*time.Second), 2)["0"])
	p.came(ids(after(120*time.Second), 1)["0"]) // the other exit has enough probes already
	p.came(third["f"])
	late(after(99*time.Second), "")
	p.came(first["f"]) // its arrival no longer matters
	late(after(101*time.Second), "messages that were due 11s ago are held up in the levels 5 to 10 or in dispatcher.delay.v2.exit.f")
	ids(after(20*time.Minute), 1) // the missing probe is lost, and nothing waits at the other exit
	late(after(20*time.Minute), "")
	ids(after(time.Hour+5*time.Minute), 1)
	ids(after(3*time.Hour), 0)
}

// A message follows the bindings from exchange to exchange. It reaches each queue whose time it needs, and then its
// target.
func TestBindingsLeadThroughTheLevelsOfADelay(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(0, maxTicks).Draw(t, "ticks")
		to := target{rapid.String().Draw(t, "exchange"), rapid.String().Draw(t, "key")}
		exit := exitOf(to.word())
		key := delayKey(n, to.word(), exit)
		if len(key) > maxName {
			t.Fatalf("a key of %d bytes", len(key))
		}
		var waited uint64
		for level := firstLevel(n); level >= lowestLevel; level-- {
			waits, passes := matches(levelPattern(level, "1"), key), matches(levelPattern(level, "0"), key)
			if waits == passes {
				t.Fatalf("level %d: waits %t, passes %t", level, waits, passes)
			}
			if waits {
				waited += uint64(levelArguments(level)["x-message-ttl"].(int64))
			}
		}
		if waited != n<<lowestLevel {
			t.Errorf("waits %d ms for %d ticks", waited, n)
		}
		ways := 0
		for _, other := range strings.Split(exits, "") {
			if matches(exitPattern(other), key) {
				ways++
			}
		}
		if ways != 1 || !matches(exitPattern(exit), key) {
			t.Errorf("%d exits for %q", ways, key)
		}
		if !matches(deliverPattern(to.word()), key) || matches(deliverPattern(target{to.exchange, to.key + "x"}.word()), key) {
			t.Error("the key does not match its own target, or matches another")
		}
	})
}

func TestArrivedMessageIsAsItWasPublished(t *testing.T) {
	t.Parallel()
	d := amqp.Delivery{Exchange: levelName(7), RoutingKey: delayKey(5, target{"x", "k"}.word(), "0"), Headers: amqp.Table{
		targetHeader: "x\x00k\x00k", "mine": "kept",
		"x-death": []any{amqp.Table{"count": int64(1)}}, "x-first-death-queue": "q", "x-first-death-reason": "expired", "x-last-death-exchange": "x",
	}}
	m := decode(&d)
	if m.Exchange != "x" || m.RoutingKey != "k\x00k" || len(m.Headers) != 1 || m.Headers["mine"] != "kept" {
		t.Errorf("got %+v", m)
	}
	d = amqp.Delivery{Exchange: levelName(7), Headers: amqp.Table{targetHeader: "\x00q"}}
	if m := decode(&d); m.Exchange != "" || m.RoutingKey != "q" || m.Headers != nil {
		t.Errorf("got %+v", m)
	}
	// In any other message the header has no special meaning.
	for name, d := range map[string]amqp.Delivery{
		"other exchange": {Exchange: "x", RoutingKey: "k", Headers: amqp.Table{targetHeader: "a\x00b"}},
		"no target":      {Exchange: levelName(7), RoutingKey: "k", Headers: amqp.Table{targetHeader: "a"}},
		"other type":     {Exchange: levelName(7), RoutingKey: "k", Headers: amqp.Table{targetHeader: int64(1)}},
	} {
		if m := decode(&d); m.Exchange != d.Exchange || m.RoutingKey != "k" || len(m.Headers) != 1 {
			t.Errorf("%s: got %+v", name, m)
		}
	}
}

func TestOnlyRabbitMQSince310Delays(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		product, version string
		delay            bool
		timeout          time.Duration // of classic queues
	}{
		{"RabbitMQ", "3.10.8", true, 30 * time.Minute},
		{"RabbitMQ", "3.10.0-rc.1", true, 30 * time.Minute},
		{"RabbitMQ", "3.13.7.2", true, 30 * time.Minute},
		{"RabbitMQ", "4.0.1", true, 30 * time.Minute},
		{"RabbitMQ", "4.2.9", true, 30 * time.Minute},
		{"RabbitMQ", "4.3.0", true, 0},
		{"RabbitMQ", "10.0", true, 0},
		{"RabbitMQ", "3.9.29", false, 30 * time.Minute},
		{"RabbitMQ", "3.8.16", false, 0},
		{"RabbitMQ", "2.10.9", false, 0},
		{"RabbitMQ", "newest", false, 0},
		{"LavinMQ", "4.0.1", false, 0},
		{"", "", false, 0},
	} {
		server := amqp.Table{"product": test.product, "version": test.version}
		can := capabilitiesOf(server, "")
		if can.Delay != test.delay || can.ConsumerTimeout != test.timeout || !can.Fanout || !can.Ephemeral || can.ExactLosses {
			t.Errorf("%s %s: %+v", test.product, test.version, can)
		}
		if can := capabilitiesOf(server, quorum); can.ConsumerTimeout == 0 && test.delay {
			t.Errorf("%s %s: no timeout of quorum queues", test.product, test.version)
		}
	}
}

func TestDelayBeyondTheLongestIsRefusedByName(t *testing.T) {
	t.Parallel()
	s := &session{can: broker.Capabilities{Delay: true}}
	for d, want := range map[time.Duration]error{broker.MaxDelay + time.Second: broker.ErrRejected, broker.MaxDelay: nil} {
		_, err := s.newDelay(&broker.Message{NotBefore: time.Now().Add(d)}, exactDigits)
		if !errors.Is(err, want) {
			t.Errorf("%v: %v, want %v", d, err, want)
		}
	}
	if _, err := s.newDelay(&broker.Message{Exchange: "a\x00b", NotBefore: time.Now().Add(time.Hour)}, exactDigits); !errors.Is(err, broker.ErrRejected) {
		t.Errorf("an exchange whose name the header cannot carry: %v", err)
	}
}
