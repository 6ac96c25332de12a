package outboxtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// defectVariable is the environment variable that names the broken outbox to a child process of this test binary.
const defectVariable = "OUTBOXTEST_DEFECT"

// broken is a MemoryOutbox with some methods replaced. A nil field leaves its method as it is.
type broken struct {
	*dispatcher.MemoryOutbox
	add    func(o *dispatcher.MemoryOutbox, ctx context.Context, e dispatcher.OutboxEntry) error
	oldest func(o *dispatcher.MemoryOutbox, key string) (dispatcher.OutboxEntry, bool, error)
	remove func(o *dispatcher.MemoryOutbox, e dispatcher.OutboxEntry) error
	bury   func(o *dispatcher.MemoryOutbox, e dispatcher.OutboxEntry) error
	keys   func(o *dispatcher.MemoryOutbox) ([]string, error)
	counts func(n dispatcher.OutboxCounts) dispatcher.OutboxCounts
	notify func()
}

func (b *broken) Add(ctx context.Context, e dispatcher.OutboxEntry) error {
	if b.add != nil {
		return b.add(b.MemoryOutbox, ctx, e)
	}
	return b.MemoryOutbox.Add(ctx, e)
}

func (b *broken) Oldest(ctx context.Context, key string) (dispatcher.OutboxEntry, bool, error) {
	if b.oldest != nil {
		return b.oldest(b.MemoryOutbox, key)
	}
	return b.MemoryOutbox.Oldest(ctx, key)
}

func (b *broken) Remove(ctx context.Context, e dispatcher.OutboxEntry) error {
	if b.remove != nil {
		return b.remove(b.MemoryOutbox, e)
	}
	return b.MemoryOutbox.Remove(ctx, e)
}

func (b *broken) Bury(ctx context.Context, e dispatcher.OutboxEntry) error {
	if b.bury != nil {
		return b.bury(b.MemoryOutbox, e)
	}
	return b.MemoryOutbox.Bury(ctx, e)
}

func (b *broken) Keys(ctx context.Context) ([]string, error) {
	if b.keys != nil {
		return b.keys(b.MemoryOutbox)
	}
	return b.MemoryOutbox.Keys(ctx)
}

func (b *broken) Counts(ctx context.Context) (dispatcher.OutboxCounts, error) {
	n, err := b.MemoryOutbox.Counts(ctx)
	if b.counts != nil {
		n = b.counts(n)
	}
	return n, err
}

func (b *broken) Notify(added func(string)) {
	if b.notify == nil {
		b.MemoryOutbox.Notify(added)
	}
}

// altered returns an outbox whose Add changes the entry first.
func altered(change func(e *dispatcher.OutboxEntry)) broken {
	return broken{add: func(o *dispatcher.MemoryOutbox, ctx context.Context, e dispatcher.OutboxEntry) error {
		change(&e)
		return o.Add(ctx, e)
	}}
}

// withHeaders returns an outbox whose Add changes the values of headers, at every depth.
func withHeaders(change func(v any) any) broken {
	var deep func(v any) any
	deep = func(v any) any {
		switch v := v.(type) {
		case []any:
			list := []any{}
			for _, v := range v {
				list = append(list, deep(v))
			}
			return list
		case map[string]any:
			table := map[string]any{}
			for name, v := range v {
				table[name] = deep(v)
			}
			return table
		}
		return change(v)
	}
	return altered(func(e *dispatcher.OutboxEntry) {
		if e.Headers != nil {
			e.Headers = deep(e.Headers).(map[string]any)
		}
	})
}

// all returns the entries of a key.
func all(o *dispatcher.MemoryOutbox, key string) []dispatcher.OutboxEntry {
	return slices.DeleteFunc(o.Entries(), func(e dispatcher.OutboxEntry) bool { return e.RoutingKey != key })
}

var defects = []struct {
	name, area, test string
	broken           broken
}{
	{"newest first", "order", "each key in the order of Add", broken{oldest: func(o *dispatcher.MemoryOutbox, key string) (dispatcher.OutboxEntry, bool, error) {
		if entries := all(o, key); len(entries) > 0 {
			return entries[len(entries)-1], true, nil
		}
		return dispatcher.OutboxEntry{}, false, nil
	}}},
	{"one order for all keys", "order", "each key in the order of Add", broken{oldest: func(o *dispatcher.MemoryOutbox, key string) (dispatcher.OutboxEntry, bool, error) {
		if entries := o.Entries(); len(entries) > 0 {
			return entries[0], true, nil
		}
		return dispatcher.OutboxEntry{}, false, nil
	}}},
	{"keys that begin alike", "order", "keys are told apart", broken{oldest: func(o *dispatcher.MemoryOutbox, key string) (dispatcher.OutboxEntry, bool, error) {
		for _, e := range o.Entries() {
			if strings.HasPrefix(e.RoutingKey, key) {
				return e, true, nil
			}
		}
		return dispatcher.OutboxEntry{}, false, nil
	}}},
	{"keys without case", "order", "keys are told apart", altered(func(e *dispatcher.OutboxEntry) { e.RoutingKey = strings.ToLower(e.RoutingKey) })},
	{"Oldest takes", "order", "Oldest leaves the entry", broken{oldest: func(o *dispatcher.MemoryOutbox, key string) (dispatcher.OutboxEntry, bool, error) {
		e, found, err := o.Oldest(context.Background(), key)
		return e, found, errors.Join(err, o.Remove(context.Background(), e))
	}}},
	{"a uuid is kept once", "order", "the same task twice is two entries", broken{add: func(o *dispatcher.MemoryOutbox, ctx context.Context, e dispatcher.OutboxEntry) error {
		if slices.ContainsFunc(all(o, e.RoutingKey), func(kept dispatcher.OutboxEntry) bool { return kept.UUID == e.UUID }) {
			return nil
		}
		return o.Add(ctx, e)
	}}},

	{"numbers through JSON", "data", "every field and header type comes back", withHeaders(func(v any) any {
		if n, ok := v.(int64); ok {
			return float64(n)
		}
		return v
	})},
	{"whole floats are integers", "data", "every field and header type comes back", withHeaders(func(v any) any {
		if f, ok := v.(float64); ok && f == 1 {
			return int64(f)
		}
		return v
	})},
	{"bytes are text", "data", "every field and header type comes back", withHeaders(func(v any) any {
		if b, ok := v.([]byte); ok {
			return string(b)
		}
		return v
	})},
	{"whole seconds", "data", "every field and header type comes back", altered(func(e *dispatcher.OutboxEntry) { e.NotBefore = e.NotBefore.Truncate(time.Second) })},
	{"no exchange", "data", "every field and header type comes back", altered(func(e *dispatcher.OutboxEntry) { e.Exchange = "" })},
	{"no content type", "data", "every field and header type comes back", altered(func(e *dispatcher.OutboxEntry) { e.ContentType = "" })},
	{"64 KiB", "data", "a large body", altered(func(e *dispatcher.OutboxEntry) { e.Body = e.Body[:min(len(e.Body), 1<<16-1)] })},

	{"the oldest whatever is named", "remove", "only the entry that is named", broken{remove: func(o *dispatcher.MemoryOutbox, e dispatcher.OutboxEntry) error {
		oldest, _, _ := o.Oldest(context.Background(), e.RoutingKey)
		return o.Remove(context.Background(), oldest)
	}}},
	{"not there is an error", "remove", "twice is a success and changes nothing", broken{remove: func(o *dispatcher.MemoryOutbox, e dispatcher.OutboxEntry) error {
		if !slices.ContainsFunc(all(o, e.RoutingKey), func(kept dispatcher.OutboxEntry) bool { return kept.ID == e.ID }) {
			return errors.New("not found")
		}
		return o.Remove(context.Background(), e)
	}}},
	{"nothing is forgotten", "remove", "only the entry that is named", broken{remove: func(*dispatcher.MemoryOutbox, dispatcher.OutboxEntry) error { return nil }}},

	{"Bury drops", "dead", "a buried entry is out of the way", broken{bury: func(o *dispatcher.MemoryOutbox, e dispatcher.OutboxEntry) error {
		return o.Remove(context.Background(), e)
	}}},
	{"no reason", "dead", "it is whole, with its reason", broken{bury: func(o *dispatcher.MemoryOutbox, e dispatcher.OutboxEntry) error {
		e.Refused = ""
		return o.Bury(context.Background(), e)
	}}},
	{"dead ones wait", "dead", "a buried entry is out of the way", broken{counts: func(n dispatcher.OutboxCounts) dispatcher.OutboxCounts {
		return dispatcher.OutboxCounts{Entries: n.Entries + n.Dead, Dead: n.Dead}
	}}},
	{"keys for ever", "dead", "a buried entry is out of the way", broken{keys: func(o *dispatcher.MemoryOutbox) ([]string, error) {
		keys, err := o.Keys(context.Background())
		for _, e := range o.Dead() {
			keys = append(keys, e.RoutingKey)
		}
		return keys, err
	}}},
	{"a retry that nobody hears of", "dead", "a retried one is sent again, behind the others", broken{notify: func() {}}},

	{"the oldest makes room", "bound", "a full one keeps what it has", broken{add: func(o *dispatcher.MemoryOutbox, ctx context.Context, e dispatcher.OutboxEntry) error {
		for {
			err := o.Add(ctx, e)
			if !errors.Is(err, dispatcher.ErrOutboxFull) {
				return err
			}
			if err := o.Remove(ctx, o.Entries()[0]); err != nil {
				return err
			}
		}
	}}},
	{"full is no outcome", "bound", "a full one keeps what it has", broken{add: func(o *dispatcher.MemoryOutbox, ctx context.Context, e dispatcher.OutboxEntry) error {
		if err := o.Add(ctx, e); err != nil {
			return errors.New("full")
		}
		return nil
	}}},
	{"dead ones make room", "bound", "Bury needs no room and makes none", broken{add: func(o *dispatcher.MemoryOutbox, ctx context.Context, e dispatcher.OutboxEntry) error {
		err := o.Add(ctx, e)
		if errors.Is(err, dispatcher.ErrOutboxFull) && len(o.TakeDead()) > 0 {
			err = o.Add(ctx, e)
		}
		return err
	}}},

	{"kept and denied", "context", "an ended one makes no call lie", broken{add: func(o *dispatcher.MemoryOutbox, ctx context.Context, e dispatcher.OutboxEntry) error {
		err := o.Add(ctx, e)
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", dispatcher.ErrNotSent, ctx.Err())
		}
		return err
	}}},
	{"claimed and not kept", "context", "an ended one makes no call lie", broken{add: func(o *dispatcher.MemoryOutbox, ctx context.Context, e dispatcher.OutboxEntry) error {
		if ctx.Err() != nil {
			return nil
		}
		return o.Add(ctx, e)
	}}},

	{"one is lost", "concurrency", "nothing is lost, doubled or overtaken", broken{add: func(o *dispatcher.MemoryOutbox, ctx context.Context, e dispatcher.OutboxEntry) error {
		if e.UUID == "077" && e.RoutingKey == "k3" {
			return nil
		}
		return o.Add(ctx, e)
	}}},
	{"one is doubled", "concurrency", "nothing is lost, doubled or overtaken", broken{add: func(o *dispatcher.MemoryOutbox, ctx context.Context, e dispatcher.OutboxEntry) error {
		if e.UUID == "077" && e.RoutingKey == "k3" {
			_ = o.Add(ctx, e)
		}
		return o.Add(ctx, e)
	}}},

	{"dead ones end with the process", "restart", "everything is there", broken{}},
	{"IDs begin anew", "restart", "new entries are behind old ones, with IDs of their own", broken{}},
}

// restarts holds what Restart does in the defects of the area "restart", by name.
var restarts = map[string]func(o *broken) dispatcher.Outbox{
	"dead ones end with the process": func(o *broken) dispatcher.Outbox { o.TakeDead(); return o },
	"IDs begin anew": func(o *broken) dispatcher.Outbox {
		next := dispatcher.NewMemoryOutbox(dispatcher.MemoryOutboxConfig{})
		for _, e := range o.Entries() {
			_ = next.Add(context.Background(), e)
		}
		return &broken{MemoryOutbox: next}
	},
}

func TestSuiteCatchesBrokenOutboxes(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for _, d := range defects {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestBrokenOutbox$/^"+d.area+"$", "-test.v")
			cmd.Env = append(os.Environ(), defectVariable+"="+d.name)
			out, err := cmd.CombinedOutput()
			want := "--- FAIL: TestBrokenOutbox/" + d.area + "/" + strings.ReplaceAll(d.test, " ", "_") + " "
			switch {
			case err == nil:
				t.Errorf("%s: area %s passed", d.name, d.area)
			case !strings.Contains(string(out), want):
				t.Errorf("%s: area %s failed, but not %q: %v\n%s", d.name, d.area, d.test, err, out)
			case strings.Contains(string(out), "panic: ") || strings.Contains(string(out), "DATA RACE"):
				t.Errorf("%s: the suite or the broken outbox panicked or has a data race:\n%s", d.name, out)
			}
		})
	}
	wg.Wait()
}

func TestEveryAreaCatchesSomething(t *testing.T) {
	t.Parallel()
	caught := map[string]bool{}
	for _, d := range defects {
		caught[d.area] = true
	}
	for _, ar := range areas {
		if !caught[ar.name] {
			t.Errorf("area %s has no broken outbox to catch", ar.name)
		}
	}
}

// TestBrokenOutbox runs the suite on a broken outbox. TestSuiteCatchesBrokenOutboxes runs it in a child process, where
// it must fail.
func TestBrokenOutbox(t *testing.T) {
	name := os.Getenv(defectVariable)
	for _, d := range defects {
		if d.name != name {
			continue
		}
		h := memoryHarness(func(o *dispatcher.MemoryOutbox) dispatcher.Outbox {
			b := d.broken
			b.MemoryOutbox = o
			return &b
		})
		if restart := restarts[name]; restart != nil {
			h.Restart = func(_ testing.TB, o dispatcher.Outbox) dispatcher.Outbox { return restart(o.(*broken)) }
		}
		Run(t, h)
		return
	}
	t.Skip("runs in a child process")
}
