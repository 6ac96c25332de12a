// Package rabbitmq is the adapter to RabbitMQ, 3.10 or later, over AMQP 0-9-1.
//
// It keeps the contract of package broker and passes the suite in broker/brokertest. Specific to RabbitMQ:
//
//   - A session is two connections. When RabbitMQ runs out of memory or disk, it stops reading a connection that
//     publishes, and acks on that connection would be held up too. So one publishes and the other consumes. When either
//     connection dies, the session dies. While the broker blocks publishers, nothing is published and consuming goes
//     on.
//   - Messages are published on up to four channels, with publisher confirms and the mandatory flag: for the default
//     exchange, for delayed messages, for exchanges that have taken a message in this session, and for other exchanges.
//     At most 1,000 messages that a caller waits for are unconfirmed at a time. Of these places, 64 are kept for Retry,
//     Suspect and DeadLetter, so that busy publishers do not hold up settling.
//   - At most 150 messages of one exchange and routing key are unanswered, more when answers come. Of the copies that
//     Retry, Suspect and DeadLetter publish, at most 16 for one queue are unanswered. So a queue that does not answer
//     does not take all places. Further messages to it wait, and are [broker.ErrNotSent] when their ctx ends. Without
//     this bound, RabbitMQ would stop reading the connection.
//   - RabbitMQ closes the channel to refuse a message that is too large, or to an exchange that does not exist or that
//     the user may not write to. That message is [broker.ErrRejected]. RabbitMQ ignores the messages behind it, so they
//     are written again on the next channel. Earlier ones that had no answer are [broker.ErrUnconfirmed]. If an
//     exchange is deleted while messages to it are in flight, these and the messages between them are ErrUnconfirmed.
//     The size limit is remembered for the session.
//   - After a nack, or when answers are due and none came for 500 ms, the next message goes through a new channel, at
//     most every 500 ms. The old one is closed when all its messages are answered.
//   - Retry, Suspect and DeadLetter publish a copy through the default exchange and then ack.
//   - A delayed message waits in quorum queues shared by all programs on the broker, dispatcher.delay.v2.5 to .34 and
//     .exit.0 to .f, without a plugin. Declare binds each durable queue, and the queue of each binding, to the place
//     where messages that are due arrive. The first delayed message of a Broker declares the rest, which takes 0.6 s if
//     it does not exist yet. So does a delayed message that finds a part of it deleted. Delays need a server that
//     identifies itself as RabbitMQ, 3.10 or later; others have no Capabilities.Delay. Delays are accurate to 32 ms,
//     and the delay of a Retry may be an eighth longer.
//   - So a delayed publish reaches only queues and bindings that were declared with this package, and no ephemeral or
//     dead letter queues. A Retry reaches every queue, because it binds the queue first. If that queue is deleted, this
//     is noticed when the message is due. With a fanout exchange, sessions that have declared the exchange may use any
//     key; other sessions must use a key that a queue was bound with.
//   - The client ends the connection over headers that it cannot read. So they are replaced before it reads them, and
//     Message.Unreadable is set. Publishing such headers is [broker.ErrHeadersTooLarge].
//   - Delivery.Losses is always 0: a redelivered message may have been given back, or lost, or never received.
//   - With quorum queues, a released message goes to the end of the queue unless the queue has a delivery limit, and
//     counts against that limit before RabbitMQ 4.3. Closing a consumer may lose some of the last acks, and those
//     messages come again.
//   - An ephemeral queue takes messages from all sessions. All other operations of other sessions on it are ErrLocked.
//   - SetPrefetch adds or replaces subscriptions, since basic.qos does not affect a live one. So for one consumer the
//     broker's tools may show several, with tags that end in #2, #3, …
package rabbitmq

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Config says where the broker is and how to talk to it.
type Config struct {
	// URLs of the nodes of one broker, amqp://user:password@host:port/vhost or amqps://…. Every Open tries them in
	// random order until one is open. A node that is slow to answer does not hold up the next one: see [Broker.Open].
	// Reserved characters in user, password and vhost are percent-encoded. Required.
	URLs []string
	// TLS for amqps URLs. An amqp URL beside it is an error, since it would be dialled in the clear. nil = the system's
	// certificates, or those that the URL names. It is cloned for every dial. ServerName is the URL's host unless set
	// here. Versions below TLS 1.2 are refused. Without InsecureSkipVerify, chain and host name are verified.
	TLS *tls.Config
	// ConnectionName is shown by the broker's tools, followed by " publish" or " consume". "" = dispatcher.
	ConnectionName string
	// QueueType of the durable queues whose QueueSpec has none: "" = classic, or "quorum".
	QueueType string
}

// String hides the URLs' credentials.
func (c Config) String() string {
	places := make([]string, len(c.URLs))
	for i, raw := range c.URLs {
		places[i] = "?"
		if a, err := parseURL(raw); err == nil {
			places[i] = a.place
		}
	}
	return fmt.Sprintf("rabbitmq.Config{URLs: %v, TLS: %t, ConnectionName: %q, QueueType: %q}",
		places, c.TLS != nil, c.ConnectionName, c.QueueType)
}

// GoString is the same as String: no format shows credentials.
func (c Config) GoString() string { return c.String() }

// heartbeat is the interval requested from the broker, which may ask for a shorter one: RabbitMQ recommends 5 to 20 s.
// A peer that sends nothing, or takes nothing, for two of them is dead.
const heartbeat = 10 * time.Second

// dialTimeout bounds the opening of one connection, dialling included.
const dialTimeout = 10 * time.Second

// Broker opens sessions. Make it with [New]. It is safe for use by many goroutines and holds no connection. It
// remembers for half a minute which nodes failed, and tries them last. It also remembers what its sessions have
// declared for delays, so that later ones need not.
type Broker struct {
	cfg       Config
	addresses []address
	heartbeat time.Duration
	shunned   shunned
}

var _ broker.Broker = (*Broker)(nil)

// New checks cfg and copies it. All problems are reported at once, in an error that Is [broker.ErrPermanent] and shows
// no credentials. It does not dial.
func New(cfg Config) (*Broker, error) {
	b := &Broker{cfg: cfg, heartbeat: heartbeat}
	b.cfg.URLs = append([]string(nil), cfg.URLs...)
	b.cfg.TLS = cfg.TLS.Clone()
	if b.cfg.ConnectionName == "" {
		b.cfg.ConnectionName = "dispatcher"
	}
	var problems []error
	// By user and virtual host; URLs that differ in them are no cluster and share nothing.
	memories := make(map[[2]string]*memory)
	if len(cfg.URLs) == 0 {
		problems = append(problems, errors.New("no URL"))
	}
	for i, raw := range b.cfg.URLs {
		a, err := parseURL(raw)
		if err == nil && cfg.TLS != nil && a.scheme != "amqps" {
			err = fmt.Errorf("%s: TLS is configured, but amqp is not encrypted: use amqps", a.place)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("URL %d of %d: %w", i+1, len(cfg.URLs), err))
		}
		key := [2]string{a.uri.Username, a.uri.Vhost}
		if memories[key] == nil {
			memories[key] = &memory{}
		}
		a.memory = memories[key]
		b.addresses = append(b.addresses, a)
	}
	if cfg.QueueType != "" && cfg.QueueType != quorum {
		problems = append(problems,
			fmt.Errorf("queue type %q is not supported: use %q or leave it empty", cfg.QueueType, quorum))
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("rabbitmq: %w: %w", broker.ErrPermanent, errors.Join(problems...))
	}
	return b, nil
}

// String names the addresses, without credentials.
func (b *Broker) String() string {
	places := make([]string, len(b.addresses))
	for i, a := range b.addresses {
		places[i] = a.place
	}
	return "rabbitmq " + strings.Join(places, ", ")
}

// GoString is the same as String: no format shows credentials.
func (b *Broker) GoString() string { return b.String() }

// address is one parsed URL.
type address struct {
	clear  string   // for the client, which needs no TLS; with credentials, never printed
	uri    amqp.URI // has them too
	scheme string
	host   string
	vhost  string
	place  string // scheme, host and vhost, for people
	heard  func() // called when the peer has sent something; nil = not needed
	memory *memory
}

// parseURL checks a URL. Its errors never quote the URL: one that does not parse may hold a password anywhere, and the
// errors of url.Parse and amqp.ParseURI print it whole or in parts.
func parseURL(raw string) (address, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return address{}, errors.New(
			"it cannot be parsed: percent-encode reserved characters, such as / ? # @ : in the password")
	}
	if u.Scheme != "amqp" && u.Scheme != "amqps" || !strings.HasPrefix(raw[len(u.Scheme):], "://") {
		return address{}, errors.New("it does not start with amqp:// or amqps://")
	}
	if err := whole(u, raw); err != nil {
		return address{}, err
	}
	// A list of URLs that was split wrongly ends up, passwords included, in the virtual host of the first, which is
	// shown.
	if strings.ContainsAny(u.EscapedPath(), "@,") {
		return address{}, errors.New("its virtual host has an @ or a comma: " +
			"percent-encode them, and separate URLs by a comma before amqp:// or amqps://")
	}
	uri, err := amqp.ParseURI(raw)
	if err != nil {
		return address{}, errors.New("it has white space, an invalid port or an invalid parameter")
	}
	if uri.Port < 1 || uri.Port > 65535 {
		return address{}, errors.New("its port is not between 1 and 65535")
	}
	host := net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port))
	place := url.URL{Scheme: uri.Scheme, Host: host, Path: "/" + strings.TrimPrefix(uri.Vhost, "/")}
	u.Scheme, u.Opaque, u.Host, u.Path, u.RawPath = "amqp", "", host, "/", ""
	return address{
		clear:  u.String(),
		uri:    uri,
		scheme: uri.Scheme,
		host:   uri.Host,
		vhost:  uri.Vhost,
		place:  place.String(),
	}, nil
}

// parameters are the URL parameters that the client reads. It ignores others, so it would ignore a misspelt one.
var parameters = []string{
	"certfile", "keyfile", "cacertfile", "server_name_indication", "auth_mechanism",
	"heartbeat", "connection_timeout", "channel_max",
}

// whole refuses a URL that the client would use only in part. If the password has a # or a ?, url.Parse takes the user
// name for the host, and the client would dial and show it.
func whole(u *url.URL, raw string) error {
	if strings.Contains(raw, "#") {
		return errors.New("it has a #: percent-encode it as %23")
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return errors.New("its parameters cannot be parsed: percent-encode a ? in the password as %3F")
	}
	for name, value := range values {
		if !slices.Contains(parameters, name) {
			return fmt.Errorf(
				"it has an unknown parameter after a ?: percent-encode a ? in the password as %%3F; known are %s",
				strings.Join(parameters, ", "))
		}
		if len(value) > 1 && name != "auth_mechanism" {
			return fmt.Errorf("it has the parameter %s twice", name)
		}
	}
	if strings.Contains(u.Host, ",") {
		return errors.New("its host has a comma: " +
			"write each node as a whole URL, and separate URLs by a comma before amqp:// or amqps://")
	}
	return nil
}
