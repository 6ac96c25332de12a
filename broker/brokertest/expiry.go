package brokertest

import (
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// ways returns the ways that a message may travel. Each sends m and returns the name of the queue where it arrives.
func ways() map[string]func(k *kit, q string, m broker.Message) (arrives string) {
	ways := map[string]func(k *kit, q string, m broker.Message) string{
		"publish": func(k *kit, q string, m broker.Message) string {
			k.send(m)
			return q
		},
		"delayed publish": func(k *kit, q string, m broker.Message) string {
			k.needDelay()
			m.NotBefore = time.Now().Add(50 * time.Millisecond)
			k.send(m)
			return q
		},
	}
	for _, c := range copies {
		ways[c.name] = func(k *kit, q string, m broker.Message) string {
			if c.delayed {
				k.needDelay()
			}
			k.send(m)
			d := k.take(k.s, q, 1)[0]
			k.must(c.name, c.do(k, d, d.Forward()))
			return q + c.to
		}
	}
	return ways
}

// testExpiry checks that the headers of expiry arrive as they were sent, on every way, and that no broker acts on them.
// The runner of a message reads them; brokers do not know when a message expires.
func testExpiry(a *area) {
	times := []struct{ name, at string }{
		{"expires later", "2999-12-31T23:59:59.123456789Z"},
		{"has expired", "2001-02-03T04:05:06.000000001Z"},
	}
	for name, travel := range ways() {
		a.test("what says that a message expires survives a "+name, func(k *kit) {
			q, _, _ := k.family("q")
			for _, x := range times {
				want := message(q, x.name)
				want.Timestamp = time.Unix(1_000_000_000, 0)
				want.Headers = map[string]any{
					"x-dispatcher-expires-at":   x.at,
					"x-dispatcher-missed-since": "2026-01-02T03:04:05.987654321Z",
					"x-dispatcher-attempt":      int64(1<<40 + 1),
					"x-dispatcher-losses":       int64(2),
					"x-dispatcher-misses":       int64(0),
					"x-dispatcher-log":          `[{"at":"2026-01-02T03:04:05Z","error":"ü"}]`,
				}
				d := k.take(k.s, travel(k, q, want), 1)[0]
				k.same(d.Message, want)
				k.ok("ack", d.Ack())
			}
			k.close(k.s) // flushes the acks
			for _, suffix := range []string{"", broker.DeadSuffix, broker.SuspectsSuffix} {
				k.expectLeft(q + suffix)
			}
		})
	}
}
