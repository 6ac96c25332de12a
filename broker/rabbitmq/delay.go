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

// A delayed message waits in up to 30 queues, the levels, and then in one of the exits. The queue of level n holds it
// for 2^n ms and then passes it on to the exchange of level n-1. Below the lowest level is the exchange of the exits.
// The first word of the routing key stands for the target, and the second names the exit. The others, each 0 or 1,
// select the levels at which the message waits, the lowest first. All messages of a queue have the same time to live,
// so the one that is due first is at the head. RabbitMQ looks nowhere else (measured: a message of 200 ms behind one of
// 3 s took 3 s).
//
// RabbitMQ passes on at most 32 messages of a queue at a time. If a target is deleted at that moment, its messages
// occupy their places for up to six minutes. So only exits publish to users' queues: a deleted target stops one exit
// and no level.
const (
	exitLevel    = 4 // an exit holds a message for 2^4 ms
	lowestLevel  = 5
	highestLevel = 34
	levelCount   = highestLevel - lowestLevel + 1

	// Every program on the broker shares these names and all that is declared under them, whatever version of this
	// library it uses, so another way to delay needs another name. A broker would refuse a level that exists with other
	// properties, and all delays would fail. Messages that wait in the levels of v1 still arrive.
	delayNames      = "dispatcher.delay." // shared by all versions
	delayPrefix     = delayNames + "v2."
	exitExchange    = delayPrefix + "exit"          // receives messages that have passed the levels
	deliverExchange = delayPrefix + "deliver"       // receives messages that are due
	strayExchange   = delayPrefix + "undeliverable" // receives due messages that no queue takes

	exitTime = 1 << exitLevel * time.Millisecond
	grain    = 1 << lowestLevel * time.Millisecond
	maxTicks = 1<<levelCount - 1

	exits = "0123456789abcdef" // a word's first digit is its exit
)

// exactDigits and retryDigits are how many significant binary digits of a delay are kept. Each digit 1 is a hop, which
// writes the message to disk twice. A task's own time is exact. The pause before a retry is up to an eighth longer, and
// takes four levels at most.
const (
	exactDigits = levelCount
	retryDigits = 4
)

// ticks returns for how many grains a message is held before its exit so that it is never early. RabbitMQ keeps whole
// milliseconds and truncates the rest, so each hop may be up to one millisecond too short.
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

// firstLevel returns the highest level at which a message waits, or exitLevel if it waits at none. The message is
// published there, since it would only pass through the levels above.
func firstLevel(ticks uint64) int { return exitLevel + bits.Len64(ticks) }

// delayKey returns the routing key for so many ticks. It has no words for levels above the first one, since a topic
// exchange examines every word of a key (measured: a retry after 100 ms cost RabbitMQ 0.34 ms of processor time with 5
// words, and 0.64 ms with 32).
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

// levelPattern returns the binding key for messages that have that digit at a level.
func levelPattern(level int, digit string) string {
	return "*." + strings.Repeat("*.", level-exitLevel) + digit + ".#"
}

// exitPattern returns the key that binds an exit to the exchange of the exits.
func exitPattern(exit string) string { return "*." + exit + ".#" }

// deliverPattern returns the key that binds a queue to the due messages of a word.
func deliverPattern(word string) string { return word + ".#" }

// target is the destination of a delayed message once it is due. If the exchange is empty, it is a queue, as
// everywhere.
type target struct{ exchange, key string }

// targetHeader names the header that carries the target, since the routing key has another use. Received messages do
// not show it.
const targetHeader = "x-dispatcher-target"

func (t target) header() string { return t.exchange + "\x00" + t.key }

// word returns the word that stands for the target in routing keys. Names would be too long there, and their dots would
// split them into several words.
func (t target) word() string {
	sum := sha256.Sum256([]byte(t.header()))
	return hex.EncodeToString(sum[:16])
}

// arrived restores the exchange, key and headers that a message was published with, if it came out of the levels.
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
		death := strings.HasPrefix(name, "x-death") ||
			strings.HasPrefix(name, "x-first-death-") ||
			strings.HasPrefix(name, "x-last-death-")
		if name == targetHeader || death {
			delete(m.Headers, name)
		}
	}
	if len(m.Headers) == 0 {
		m.Headers = nil
	}
}
