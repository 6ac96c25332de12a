package dispatcher

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Defaults of MemoryOutboxConfig.
const (
	defaultOutboxEntries = 10_000
	defaultOutboxBytes   = 64 << 20
)

// MemoryOutboxConfig configures a [MemoryOutbox]. Dead entries count towards both bounds. An accepted entry is never
// dropped to make room, so take the dead ones now and then.
type MemoryOutboxConfig struct {
	// MaxEntries is the largest number of entries. 0 or less: 10,000.
	MaxEntries int
	// MaxBytes bounds the sum of their bodies, headers and names, in bytes. 0 or less: 64 MiB.
	MaxBytes int
}

// MemoryOutbox is an [Outbox] in the memory of the process. It survives lost connections and closed servers, and ends
// with the process. Make it with [NewMemoryOutbox]. All methods are safe for concurrent use, and none of them blocks.
type MemoryOutbox struct {
	cfg MemoryOutboxConfig

	mu      sync.Mutex // guards what follows
	lastID  uint64
	waiting map[string][]OutboxEntry // by routing key, oldest first; never empty
	dead    []OutboxEntry            // oldest first
	entries int                      // those in waiting
	bytes   int                      // of all, dead ones too
	added   func(string)             // of the server; may be nil
}

var _ OutboxNotifier = (*MemoryOutbox)(nil)

// NewMemoryOutbox returns an empty outbox.
func NewMemoryOutbox(cfg MemoryOutboxConfig) *MemoryOutbox {
	if cfg.MaxEntries <= 0 {
		cfg.MaxEntries = defaultOutboxEntries
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = defaultOutboxBytes
	}
	return &MemoryOutbox{cfg: cfg, waiting: make(map[string][]OutboxEntry)}
}

// Add implements [Outbox]. The error Is [ErrOutboxFull] if the entry does not fit.
func (o *MemoryOutbox) Add(_ context.Context, e OutboxEntry) error {
	size := e.size()
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := o.entries + len(o.dead); n >= o.cfg.MaxEntries || size > o.cfg.MaxBytes-o.bytes {
		return fmt.Errorf("%w: it holds %d entries, %d of them dead, with %d bytes; "+
			"the maximum is %d entries with %d bytes; this entry has %d bytes",
			ErrOutboxFull, n, len(o.dead), o.bytes, o.cfg.MaxEntries, o.cfg.MaxBytes, size)
	}
	o.lastID++
	e.ID = strconv.FormatUint(o.lastID, 10)
	o.waiting[e.RoutingKey] = append(o.waiting[e.RoutingKey], e)
	o.entries++
	o.bytes += size
	return nil
}

// Oldest implements [Outbox].
func (o *MemoryOutbox) Oldest(_ context.Context, routingKey string) (OutboxEntry, bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if all := o.waiting[routingKey]; len(all) > 0 {
		return all[0], true, nil
	}
	return OutboxEntry{}, false, nil
}

// Remove implements [Outbox].
func (o *MemoryOutbox) Remove(_ context.Context, e OutboxEntry) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if kept, ok := o.take(e); ok {
		o.bytes -= kept.size()
	}
	return nil
}

// Bury implements [Outbox].
func (o *MemoryOutbox) Bury(_ context.Context, e OutboxEntry) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if kept, ok := o.take(e); ok {
		kept.Refused, kept.RefusedAt = e.Refused, e.RefusedAt
		o.dead = append(o.dead, kept)
	}
	return nil
}

// take removes an entry from those that wait. mu must be locked.
func (o *MemoryOutbox) take(e OutboxEntry) (OutboxEntry, bool) {
	all := o.waiting[e.RoutingKey]
	i := slices.IndexFunc(all, func(kept OutboxEntry) bool { return kept.ID == e.ID })
	if i < 0 {
		return OutboxEntry{}, false
	}
	kept := all[i]
	switch {
	case len(all) == 1:
		delete(o.waiting, e.RoutingKey)
	case i == 0: // always so for a server; moving thousands up each time would be slow
		all[0] = OutboxEntry{} // or its body stays in memory
		o.waiting[e.RoutingKey] = all[1:]
	default:
		o.waiting[e.RoutingKey] = slices.Delete(all, i, i+1)
	}
	o.entries--
	return kept, true
}

// Keys implements [Outbox].
func (o *MemoryOutbox) Keys(context.Context) ([]string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Collect(maps.Keys(o.waiting)), nil
}

// Counts implements [Outbox].
func (o *MemoryOutbox) Counts(context.Context) (OutboxCounts, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return OutboxCounts{Entries: o.entries, Dead: len(o.dead)}, nil
}

// Entries returns the entries that wait to be sent, over all routing keys, in the order in which they came.
func (o *MemoryOutbox) Entries() []OutboxEntry {
	o.mu.Lock()
	all := slices.Concat(slices.Collect(maps.Values(o.waiting))...)
	o.mu.Unlock()
	slices.SortFunc(all, func(a, b OutboxEntry) int { // IDs are numbers, as text
		return cmp.Or(cmp.Compare(len(a.ID), len(b.ID)), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// Dead returns the dead entries, the first refused first. They stay in the outbox.
func (o *MemoryOutbox) Dead() []OutboxEntry {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.dead)
}

// RetryDead makes a dead entry, identified by its RoutingKey and ID, the newest of its routing key again, to be sent.
// The entry gets another ID. RetryDead returns false if there is no such entry.
func (o *MemoryOutbox) RetryDead(e OutboxEntry) bool {
	o.mu.Lock()
	kept, ok := o.takeDead(e)
	if ok {
		o.lastID++
		kept.ID, kept.Refused, kept.RefusedAt = strconv.FormatUint(o.lastID, 10), "", time.Time{}
		o.waiting[kept.RoutingKey] = append(o.waiting[kept.RoutingKey], kept)
		o.entries++
	}
	added := o.added
	o.mu.Unlock()
	if ok && added != nil {
		added(kept.RoutingKey)
	}
	return ok
}

// RemoveDead deletes a dead entry, identified by its RoutingKey and ID. It returns false if there is no such entry.
func (o *MemoryOutbox) RemoveDead(e OutboxEntry) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	kept, ok := o.takeDead(e)
	if ok {
		o.bytes -= kept.size()
	}
	return ok
}

// takeDead removes an entry from the dead ones. mu must be locked.
func (o *MemoryOutbox) takeDead(e OutboxEntry) (OutboxEntry, bool) {
	i := slices.IndexFunc(o.dead, func(d OutboxEntry) bool { return d.ID == e.ID && d.RoutingKey == e.RoutingKey })
	if i < 0 {
		return OutboxEntry{}, false
	}
	kept := o.dead[i]
	o.dead = slices.Delete(o.dead, i, i+1)
	return kept, true
}

// Notify implements [OutboxNotifier].
func (o *MemoryOutbox) Notify(added func(routingKey string)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.added = added
}

// TakeDead returns the dead entries as [MemoryOutbox.Dead] does and removes them. The caller is then responsible for
// them.
func (o *MemoryOutbox) TakeDead() []OutboxEntry {
	o.mu.Lock()
	defer o.mu.Unlock()
	dead := o.dead
	o.dead = nil
	for _, e := range dead {
		o.bytes -= e.size()
	}
	return dead
}

// size returns the number of bytes that MaxBytes counts.
func (e *OutboxEntry) size() int {
	return len(e.Exchange) + len(e.RoutingKey) + len(e.ContentType) + len(e.UUID) + len(e.Name) +
		len(e.Body) + headerSize(e.Headers)
}

// headerSize returns about how many bytes a header takes.
func headerSize(v any) int {
	n := 8
	switch v := v.(type) {
	case string:
		n += len(v)
	case []byte:
		n += len(v)
	case []any:
		for _, v := range v {
			n += headerSize(v)
		}
	case map[string]any:
		for name, v := range v {
			n += len(name) + headerSize(v)
		}
	}
	return n
}
