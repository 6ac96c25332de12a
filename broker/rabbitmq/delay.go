package rabbitmq

import (
	"crypto/sha256"
	"encoding/hex"
	"math/bits"
	"strconv"
	"strings"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// A delayed message waits in up to 30 queues, the levels, and then in one of the exits. The queue of level n holds it for 2^n ms and then
// passes it on to the exchange of level n-1; below the lowest one is the exchange of the exits. The first word of the routing key stands
// for the target, the second names the exit, and the others, 0 or 1, say at which levels the message waits, the lowest first.
// A queue has one time to live for all, so that what is due first is at its head: RabbitMQ looks nowhere else (measured: a
// message of 200 ms behind one of 3 s took 3 s).
//
// RabbitMQ passes on at most 32 messages of a queue at a time. If a target is deleted in that moment, its messages keep their places for up
// to six minutes. So only exits publish to users' queues: a deleted target stops one exit and no level.
const (
	exitLevel    = 4 // an exit holds a message for 2^4 ms
	lowestLevel  = 5
	highestLevel = 34
	levelCount   = highestLevel - lowestLevel + 1

	// The names and all that hangs on them are shared by every program on the broker, of any version of this one: another way
	// to delay needs another name. A broker would refuse a level that exists with other properties, and with it all delays. What waits
	// in the levels of v1 still comes through.
	delayNames      = "dispatcher.delay." // of every version
	delayPrefix     = delayNames + "v2."
	exitExchange    = delayPrefix + "exit"          // where messages are that have passed the levels
	deliverExchange = delayPrefix + "deliver"       // where messages are that are due
	strayExchange   = delayPrefix + "undeliverable" // where those go that no queue takes there

	exitTime = 1 << exitLevel * time.Millisecond
	grain    = 1 << lowestLevel * time.Millisecond
	maxTicks = 1<<levelCount - 1

	exits = "0123456789abcdef" // a word's first digit is its exit
)

// How many significant binary digits of a delay are kept. A digit of 1 is a hop, in which the message is written to disk
// twice. A task's own time is exact; the pause before a retry is up to an eighth longer, and four levels at most.
const (
	exactDigits = levelCount
	retryDigits = 4
)

// ticks is for how many grains a message is held before its exit so that it is never early. RabbitMQ keeps whole milliseconds and cuts off
// what is less, so that each hop may be up to one too short.
func ticks(d time.Duration, digits int) uint64 {
	n := uint64(max(0, d-exitTime) / grain)
	for {
		if excess := bits.Len64(n) - digits; excess > 0 {
			n = (n + 1<<excess - 1) >> excess << excess
		}
		if n >= maxTicks {
			return maxTicks
		}
		if exitTime+time.Duration(n)*grain-time.Duration(1+bits.OnesCount64(n))*time.Millisecond >= d {
			return n
		}
		n++
	}
}

// levelName names the queue and the exchange of a level, and the exchange of the exits.
func levelName(level int) string {
	if level == exitLevel {
		return exitExchange
	}
	return delayPrefix + strconv.Itoa(level)
}

// exitName names the queue of an exit.
func exitName(exit string) string { return exitExchange + "." + exit }

// exitOf returns the exit of a target's word. All messages of a target use it, so a deleted target stops no other exit.
func exitOf(word string) string { return word[:1] }

// firstLevel is the highest one where a message waits, or that of the exits. It is published there, since the levels above are only a way.
func firstLevel(ticks uint64) int { return exitLevel + bits.Len64(ticks) }

// delayKey is the routing key for so many ticks. It has no word for the levels above the first one, since a topic exchange looks at every
// word of a key (measured: a retry after 100 ms cost RabbitMQ 0.34 ms of processor time with 5 words, and 0.64 ms with 32).
func delayKey(ticks uint64, word, exit string) string {
	first := firstLevel(ticks)
	key := make([]byte, 0, len(word)+len(exit)+1+2*(first-exitLevel))
	key = append(key, word...)
	key = append(key, '.')
	key = append(key, exit...)
	for level := lowestLevel; level <= first; level++ {
		key = append(key, '.', '0'+byte(ticks>>(level-lowestLevel)&1))
	}
	return string(key)
}

// levelPattern binds at a level what has that digit there.
func levelPattern(level int, digit string) string {
	return "*." + strings.Repeat("*.", level-exitLevel) + digit + ".#"
}

// exitPattern binds an exit to the exchange of all of them.
func exitPattern(exit string) string { return "*." + exit + ".#" }

// deliverPattern binds what is due to a queue.
func deliverPattern(word string) string { return word + ".#" }

// target is where a delayed message goes when it is due. With an empty exchange it is a queue, as everywhere.
type target struct{ exchange, key string }

// targetHeader carries the target, since the routing key has another use. Received messages do not show it.
const targetHeader = "x-dispatcher-target"

func (t target) header() string { return t.exchange + "\x00" + t.key }

// word stands for the target in routing keys, where names would be too long, and the dots in them words of their own.
func (t target) word() string {
	sum := sha256.Sum256([]byte(t.header()))
	return hex.EncodeToString(sum[:16])
}

// arrived gives a message that came out of the levels what it was published with, if it is one.
func arrived(m *broker.Message) {
	if !strings.HasPrefix(m.Exchange, delayNames) {
		return
	}
	header, _ := m.Headers[targetHeader].(string)
	exchange, key, ok := strings.Cut(header, "\x00")
	if !ok {
		return
	}
	m.Exchange, m.RoutingKey = exchange, key
	for name := range m.Headers {
		if name == targetHeader || strings.HasPrefix(name, "x-death") || strings.HasPrefix(name, "x-first-death-") || strings.HasPrefix(name, "x-last-death-") {
			delete(m.Headers, name)
		}
	}
	if len(m.Headers) == 0 {
		m.Headers = nil
	}
}
