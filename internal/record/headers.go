package record

import (
	"strings"

	"github.com/seed-416683c9/dispatcher/broker"
)

// IsOwn reports whether the library writes headers with that name.
func IsOwn(name string) bool { return strings.HasPrefix(name, Prefix) }

// IsForPeople reports whether such a header describes the message as it was published, for a person.
func IsForPeople(name string) bool {
	return name == broker.RawHeaders || name == broker.ExpirationHeader || name == broker.UserIDHeader
}

const (
	// MaxName is the longest name in bytes. An AMQP short string has one byte of length (AMQP 0-9-1, §4.2.5.3), and a
	// longer one is cut or closes the connection.
	MaxName = 255
)

const (
	Prefix = "x-dispatcher-" // begins the names of the library's headers
)

// These are the headers that the library writes; ADR 0007 describes their values. A worker of gofort/dispatcher ignores
// them.
const (
	HeaderAttempt     = Prefix + "attempt" // attempts made
	HeaderAsked       = Prefix + "asked"   // attempts that ended with RetryAfter
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
