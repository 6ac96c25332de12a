package broker

// Topology describes what must exist before messages flow. Its fields are declared in order.
type Topology struct {
	Exchanges []Exchange
	Queues    []QueueSpec
	Bindings  []Binding
}

// Exchange routes messages to the queues bound to it. It is durable.
type Exchange struct {
	Name string // not empty: the default exchange always exists
	Kind ExchangeKind
}

// ExchangeKind says how an exchange chooses among its bindings.
type ExchangeKind string

const (
	Direct ExchangeKind = "direct" // queues whose binding key equals the routing key
	Fanout ExchangeKind = "fanout" // every bound queue; see Capabilities.Fanout
)

// QueueSpec describes a queue. Without Ephemeral it is durable.
type QueueSpec struct {
	Name string
	// Type is the broker's kind of queue, "" = its default. A type the broker does not have is errors.ErrUnsupported.
	Type string
	// Ephemeral: the queue lives and dies with the session that declared it, and only that session may consume it.
	// Declaring a name that another session holds is ErrLocked until that session ends, so it can serve as a lock. See
	// Capabilities.Ephemeral.
	Ephemeral bool
}

// Binding sends the messages of a routing key of an exchange to a queue. Declaring it twice has no further effect.
type Binding struct {
	Queue    string
	Exchange string
	Key      string
}
