package record

import (
	"strings"

	"github.com/seed-416683c9/dispatcher/broker"
)

// IsOwn reports whether the library writes a header of that name.
func IsOwn(name string) bool { return strings.HasPrefix(name, Prefix) }

// IsForPeople reports whether one of them tells a person about the message as it was published.
func IsForPeople(name string) bool {
	return name == broker.RawHeaders || name == broker.ExpirationHeader || name == broker.UserIDHeader
}

const (
	// MaxName: an AMQP short string has one byte of length (AMQP 0-9-1, §4.2.5.3), and a longer one is cut or
	// closes the connection.
	MaxName = 255
)

const (
	Prefix = "x-dispatcher-" // of the names that are ours
)

// Headers that the library writes; ADR 0007 says what they hold. A worker of gofort/dispatcher ignores them.
const (
	HeaderAttempt     = Prefix + "attempt" // attempts made
	HeaderAsked       = Prefix + "asked"   // those of them that ended with RetryAfter
	HeaderLog         = Prefix + "log"
	HeaderRoutingKey  = Prefix + "routing-key"
	HeaderExpiresAt   = Prefix + "expires-at"
	HeaderLosses      = Prefix + "losses"
	HeaderMisses      = Prefix + "misses"
	HeaderMissedSince = Prefix + "missed-since"

	// In dead letters only.
	HeaderReason = Prefix + "reason"
	HeaderError  = Prefix + "error"
	HeaderQueue  = Prefix + "queue"
	HeaderDiedAt = Prefix + "died-at"
	HeaderWorker = Prefix + "worker"
)
