// Package outboxtest checks that an outbox satisfies the contract of [dispatcher.Outbox].
//
// [Run] is the conformance suite for authors of outboxes. Each area of the contract is a subtest, and each behaviour is
// a subtest of its area. The suite is itself tested with outboxes that are broken on purpose (broken_test.go). It must
// catch each of them.
package outboxtest

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// Harness makes and controls one kind of outbox for the suite. If a field that may be nil is nil, the tests that need
// it are skipped and say so.
type Harness struct {
	// New returns an empty outbox that holds at most maxEntries entries, or its default if maxEntries is 0. It is
	// called once for every test, by many goroutines at once.
	New func(tb testing.TB, maxEntries int) dispatcher.Outbox

	// Restart ends o and returns the outbox of the next process, with the same entries. It is nil if an outbox ends
	// with its process.
	Restart func(tb testing.TB, o dispatcher.Outbox) dispatcher.Outbox

	// Dead returns the dead entries in the order in which they were refused. It may be nil.
	Dead func(o dispatcher.Outbox) ([]dispatcher.OutboxEntry, error)
	// Retry makes a dead entry the newest of its routing key again, and Remove removes it. They return false if there
	// is no such entry. They are nil if the outbox does not support them.
	Retry, Remove func(o dispatcher.Outbox, e dispatcher.OutboxEntry) (bool, error)
}

// areas are the parts of the suite. A test checks that each of them catches a broken outbox.
var areas = []struct {
	name  string
	cases func(a *area)
}{
	{"order", testOrder},
	{"data", testData},
	{"remove", testRemove},
	{"dead", testDead},
	{"bound", testBound},
	{"context", testContext},
	{"concurrency", testConcurrency},
	{"restart", testRestart},
}

// Run checks the outboxes of h against the contract, with one subtest per area.
func Run(t *testing.T, h Harness) {
	for _, ar := range areas {
		t.Run(ar.name, func(t *testing.T) {
			t.Parallel()
			ar.cases(&area{t: t, h: h})
		})
	}
}

// area collects the tests of one area.
type area struct {
	t *testing.T
	h Harness
}

// test runs one test with an outbox of its own.
func (a *area) test(name string, f func(k *kit)) {
	a.t.Run(name, func(t *testing.T) {
		t.Parallel()
		f(&kit{TB: t, ctx: t.Context(), h: a.h, o: a.h.New(t, 0)})
	})
}

// kit is one test: an outbox, and methods that fail the test if a call returns an error.
type kit struct {
	testing.TB
	ctx context.Context
	h   Harness
	o   dispatcher.Outbox
}

// entry returns a plain entry.
func entry(key, uuid string) dispatcher.OutboxEntry {
	return dispatcher.OutboxEntry{
		Exchange:    "exchange",
		RoutingKey:  key,
		UUID:        uuid,
		Name:        "name",
		ContentType: "application/json",
		Body:        []byte("{}"),
		AcceptedAt:  time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
	}
}

func (k *kit) check(err error) {
	k.Helper()
	if err != nil {
		k.Fatal(err)
	}
}

func (k *kit) add(key string, uuids ...string) {
	k.Helper()
	for _, uuid := range uuids {
		k.check(k.o.Add(k.ctx, entry(key, uuid)))
	}
}

func (k *kit) oldest(key string) dispatcher.OutboxEntry {
	k.Helper()
	e, found, err := k.o.Oldest(k.ctx, key)
	k.check(err)
	if !found {
		k.Fatalf("no entry of %q", key)
	}
	return e
}

func (k *kit) remove(e dispatcher.OutboxEntry) {
	k.Helper()
	k.check(k.o.Remove(k.ctx, e))
}

func (k *kit) bury(e dispatcher.OutboxEntry, why string, at time.Time) dispatcher.OutboxEntry {
	k.Helper()
	e.Refused, e.RefusedAt = why, at
	k.check(k.o.Bury(k.ctx, e))
	return e
}

// drain removes all entries of a key and returns their uuids, oldest first.
func (k *kit) drain(key string) (uuids []string) {
	k.Helper()
	for len(uuids) < 1_000_000 {
		e, found, err := k.o.Oldest(k.ctx, key)
		k.check(err)
		if !found {
			return uuids
		}
		if slices.Contains(uuids, e.UUID) {
			k.Fatalf("%q is still the oldest after it was removed", e.UUID)
		}
		uuids = append(uuids, e.UUID)
		k.remove(e)
	}
	return uuids
}

// holds fails the test unless these are the entries of a key, oldest first. It removes them.
func (k *kit) holds(key string, want ...string) {
	k.Helper()
	if got := k.drain(key); !slices.Equal(got, want) {
		k.Errorf("key %q holds %q, want %q", key, got, want)
	}
}

func (k *kit) counts(entries, dead int) {
	k.Helper()
	n, err := k.o.Counts(k.ctx)
	k.check(err)
	if want := (dispatcher.OutboxCounts{Entries: entries, Dead: dead}); n != want {
		k.Errorf("counts %+v, want %+v", n, want)
	}
}

func (k *kit) keys(want ...string) {
	k.Helper()
	got, err := k.o.Keys(k.ctx)
	k.check(err)
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		k.Errorf("keys %q, want %q", got, want)
	}
}

// dead returns the dead entries. It skips the test if the harness has no Dead.
func (k *kit) dead() []dispatcher.OutboxEntry {
	k.Helper()
	if k.h.Dead == nil {
		k.Skip("the harness has no Dead")
	}
	dead, err := k.h.Dead(k.o)
	k.check(err)
	return dead
}

// oneDead returns the only dead entry.
func (k *kit) oneDead() dispatcher.OutboxEntry {
	k.Helper()
	dead := k.dead()
	if len(dead) != 1 {
		k.Fatalf("%d dead entries, want 1", len(dead))
	}
	return dead[0]
}

// same fails the test unless two entries are equal in all but ID. Times are equal if they are the same instant.
func (k *kit) same(got, want dispatcher.OutboxEntry) {
	k.Helper()
	g, w := reflect.ValueOf(got), reflect.ValueOf(want)
	for i := range g.NumField() {
		name := g.Type().Field(i).Name
		if name == "ID" {
			continue
		}
		if problem := differ(name, g.Field(i).Interface(), w.Field(i).Interface()); problem != "" {
			k.Errorf("entry %q: %s", want.UUID, problem)
		}
	}
}

// differ describes the first difference between two values. It returns "" if they are equal.
func differ(path string, got, want any) string {
	if reflect.TypeOf(got) != reflect.TypeOf(want) {
		return fmt.Sprintf("%s is a %T, want %T", path, got, want)
	}
	equal := true
	switch want := want.(type) {
	case time.Time:
		equal = got.(time.Time).Equal(want)
	case []byte:
		equal = string(got.([]byte)) == string(want)
	case []any:
		got := got.([]any)
		if equal = len(got) == len(want); equal {
			for i := range want {
				if problem := differ(fmt.Sprintf("%s[%d]", path, i), got[i], want[i]); problem != "" {
					return problem
				}
			}
		}
	case map[string]any:
		got := got.(map[string]any)
		if equal = len(got) == len(want); equal {
			for name := range want {
				v, found := got[name]
				if !found {
					return fmt.Sprintf("%s has no %q", path, name)
				}
				if problem := differ(fmt.Sprintf("%s[%q]", path, name), v, want[name]); problem != "" {
					return problem
				}
			}
		}
	default:
		equal = reflect.DeepEqual(got, want)
	}
	if !equal {
		return fmt.Sprintf("%s is %s, want %s", path, excerpt(got), excerpt(want))
	}
	return ""
}

// excerpt returns the beginning of a value's text.
func excerpt(v any) string {
	text := fmt.Sprint(v)
	switch v.(type) {
	case string, []byte:
		text = fmt.Sprintf("%q", v)
	}
	if len(text) > 100 {
		text = fmt.Sprintf("%s… (%d bytes)", text[:100], len(text))
	}
	return text
}
