package dispatcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/record"
)

// This file checks configurations and fills in their defaults. dispatcher.go documents them.

// Defaults of the configuration, used for fields that are zero.
const (
	defaultLimit           = 3 // of a worker, as gofort/dispatcher has it
	defaultPublishTimeout  = 30 * time.Second
	defaultShutdownTimeout = 30 * time.Second
	defaultMaxBodyBytes    = 1 << 20
	defaultUnknownMaxAge   = time.Hour
)

const (
	// maxQueueBytes leaves room for the suffixes of the queues that belong to a worker's queue.
	maxQueueBytes = 240
	// maxLimit is the largest Limit and Prefetch. A worker prefetches at least its Limit, and that of basic.qos is a 16-bit
	// number (AMQP 0-9-1).
	maxLimit = math.MaxUint16
	// maxDuration replaces longer durations, so that sums do not overflow: 146 years.
	maxDuration time.Duration = math.MaxInt64 / 2
	// maxSeconds keeps seconds, with jitter on top, inside a time.Duration.
	maxSeconds = int64(maxDuration / time.Second)
)

// bound ends a context after PublishTimeout and sets a cause that says so. Otherwise the caller would take "deadline
// exceeded" for a deadline of their own.
func (c *ServerConfig) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, c.PublishTimeout, publishTimeout(c.PublishTimeout))
}

// publishTimeout is the cause of a context that ServerConfig.PublishTimeout has ended.
type publishTimeout time.Duration

func (d publishTimeout) Error() string { return fmt.Sprintf("PublishTimeout of %v", time.Duration(d)) }

// withDefaults copies c whole, so that no new field is forgotten, and fills the fields that are zero.
func (c *ServerConfig) withDefaults() ServerConfig {
	out := *c
	out.InitQueues = slices.Clone(c.InitQueues)
	for i := range out.InitQueues {
		out.InitQueues[i].BindingKeys = slices.Clone(out.InitQueues[i].BindingKeys)
	}
	if c.Retry != nil {
		// NewWorker reads it later and fills in its defaults then; filling them twice would change Jitter.
		policy := *c.Retry
		out.Retry = &policy
	}
	if out.PublishTimeout == 0 {
		out.PublishTimeout = defaultPublishTimeout
	}
	if out.ShutdownTimeout == 0 {
		out.ShutdownTimeout = defaultShutdownTimeout
	}
	out.PublishTimeout = min(out.PublishTimeout, maxDuration)
	out.ShutdownTimeout = min(out.ShutdownTimeout, maxDuration)
	if out.MaxBodyBytes == 0 {
		out.MaxBodyBytes = defaultMaxBodyBytes
	}
	if out.Broker == nil {
		out.Broker, _ = newRabbitMQ(c) // validate has reported the error
		out.AMQPConnectionString = ""  // it holds a password, and printing a server prints this copy
	}
	if out.Logger == nil {
		out.Logger = newLogger(out.DebugMode)
	}
	return out
}

// validate reports every problem at once.
func (c *ServerConfig) validate() error {
	var p problems
	p.addIf(c.Exchange == "", ErrExchangeRequired)
	p.addIf(c.DefaultRoutingKey == "", ErrDefaultRoutingKeyRequired)
	p.name("ServerConfig.Exchange", c.Exchange, record.MaxName)
	p.name("ServerConfig.DefaultRoutingKey", c.DefaultRoutingKey, record.MaxName)
	for i, q := range c.InitQueues {
		p.addIf(q.Name == "", ErrEmptyQueueName)
		p.name(fmt.Sprintf("ServerConfig.InitQueues[%d].Name", i), q.Name, record.MaxName)
		for j, key := range q.BindingKeys {
			p.addIf(key == "", ErrEmptyBindingKey)
			p.name(fmt.Sprintf("ServerConfig.InitQueues[%d].BindingKeys[%d]", i, j), key, record.MaxName)
		}
	}
	p.addIf(c.ReconnectionIntervalSeconds < 0, errors.New("ServerConfig.ReconnectionIntervalSeconds is negative"))
	p.addIf(c.ReconnectionIntervalSeconds > maxSeconds,
		errors.New("ServerConfig.ReconnectionIntervalSeconds is too large"))
	p = p.with(c.Retry.validate("ServerConfig.Retry"))
	p.addIf(c.PublishTimeout < 0, errors.New("ServerConfig.PublishTimeout is negative"))
	amqp := c.AMQPConnectionString != "" ||
		c.TLSConfig != nil ||
		c.SecureConnection ||
		c.ConnectionName != "" ||
		c.QueueType != ""
	p.addIf(c.Broker != nil && amqp, errors.New(
		"ServerConfig.Broker cannot be combined with AMQPConnectionString, TLSConfig, SecureConnection, ConnectionName or QueueType"))
	if c.Broker == nil {
		_, err := newRabbitMQ(c)
		p = p.with(err)
	}
	return p.err()
}

func (c *WorkerConfig) withDefaults() WorkerConfig {
	out := *c
	out.BindingKeys = slices.Clone(c.BindingKeys)
	out.Middleware = slices.Clone(c.Middleware)
	if out.Limit == 0 {
		out.Limit = defaultLimit
	}
	if out.MaxAbandoned == 0 {
		out.MaxAbandoned = out.Limit
	}
	out.MaxAbandoned = max(out.MaxAbandoned, 0)
	if out.UnknownTaskMaxAge == 0 {
		out.UnknownTaskMaxAge = defaultUnknownMaxAge
	}
	out.UnknownTaskMaxAge = min(out.UnknownTaskMaxAge, maxDuration)
	return out
}

func (c *WorkerConfig) validate() error {
	var p problems
	p.addIf(c.Name == "", ErrWorkerNameRequired)
	p.addIf(c.Limit < 0, errors.New("WorkerConfig.Limit is negative"))
	p.addIf(c.Limit > maxLimit, fmt.Errorf("WorkerConfig.Limit is %d, the maximum is %d", c.Limit, maxLimit))
	slots := cmp.Or(c.Limit, defaultLimit)
	p.addIf(c.Prefetch != 0 && c.Prefetch < slots,
		fmt.Errorf("WorkerConfig.Prefetch is %d, less than the Limit, %d", c.Prefetch, slots))
	p.addIf(c.Prefetch > maxLimit, fmt.Errorf("WorkerConfig.Prefetch is %d, the maximum is %d", c.Prefetch, maxLimit))
	p.addIf(c.Queue == "", ErrWorkerQueueRequired)
	p.name("WorkerConfig.Name", c.Name, record.MaxName)
	p.name("WorkerConfig.Queue", c.Queue, maxQueueBytes)
	for _, suffix := range []string{broker.DeadSuffix, broker.SuspectsSuffix} {
		p.addIf(strings.HasSuffix(c.Queue, suffix),
			fmt.Errorf("WorkerConfig.Queue %q: names ending in %s are reserved", c.Queue, suffix))
	}
	p = p.with(c.Retry.validate("WorkerConfig.Retry"))
	p.addIf(slices.ContainsFunc(c.Middleware, isNil), errors.New("WorkerConfig.Middleware has a nil element"))
	for i, key := range c.BindingKeys {
		p.name(fmt.Sprintf("WorkerConfig.BindingKeys[%d]", i), key, record.MaxName)
	}
	return p.err()
}

// problems collects what is wrong with a configuration.
type problems []error

func (p *problems) addIf(wrong bool, err error) {
	if wrong {
		*p = append(*p, err)
	}
}

func (p *problems) name(field, value string, limit int) {
	if len(value) > limit {
		*p = append(*p, fmt.Errorf("%s is %d bytes long, the maximum is %d", field, len(value), limit))
	}
	if !utf8.ValidString(value) {
		*p = append(*p, fmt.Errorf("%s %.40q is not valid UTF-8", field, value))
	}
}

// with adds those of errs that are not nil.
func (p problems) with(errs ...error) problems {
	for _, err := range errs {
		p.addIf(err != nil, err)
	}
	return p
}

// err returns a single problem unchanged, so that its text stays whole, or all of them joined.
func (p problems) err() error {
	if len(p) == 1 {
		return p[0]
	}
	return errors.Join(p...)
}
