package outboxtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/seed-416683c9/dispatcher"
)

func testOrder(a *area) {
	a.test("each key in the order of Add", func(k *kit) {
		var want [3][]string
		for i := range 60 {
			uuid := fmt.Sprint(i)
			want[i%3] = append(want[i%3], uuid)
			k.add(fmt.Sprint("k", i%3), uuid)
		}
		for i, uuids := range want {
			k.holds(fmt.Sprint("k", i), uuids...)
		}
		k.counts(0, 0)
	})
	a.test("keys are told apart", func(k *kit) {
		keys := []string{
			"", "a", "a.b", "aa", "a\x00", "a\x00\x00", "\x00", "\xff", "ä", "A", "a ",
			strings.Repeat("x", 255), strings.Repeat("x", 254),
		}
		for i, key := range keys {
			k.add(key, fmt.Sprint(i, "-1"))
		}
		for i, key := range keys {
			k.add(key, fmt.Sprint(i, "-2"))
		}
		k.keys(keys...)
		for i, key := range keys {
			if e := k.oldest(key); e.RoutingKey != key {
				k.Errorf("key %q: got an entry of %q", key, e.RoutingKey)
			}
			k.holds(key, fmt.Sprint(i, "-1"), fmt.Sprint(i, "-2"))
		}
		k.keys()
	})
	a.test("Oldest leaves the entry", func(k *kit) {
		k.add("k", "1", "2")
		first, second := k.oldest("k"), k.oldest("k")
		if first.ID != second.ID || first.UUID != "1" || second.UUID != "1" {
			k.Errorf("got %+v and then %+v", first, second)
		}
		k.counts(2, 0)
	})
	a.test("an entry that comes while others leave is last", func(k *kit) {
		k.add("k", "1", "2")
		k.remove(k.oldest("k"))
		k.add("k", "3")
		k.remove(k.oldest("k"))
		k.add("k", "4")
		k.holds("k", "3", "4")
		k.add("k", "5")
		k.holds("k", "5")
	})
	a.test("the same task twice is two entries", func(k *kit) {
		k.add("k", "1", "1")
		first := k.oldest("k")
		k.remove(first)
		if second := k.oldest("k"); second.ID == first.ID || second.UUID != "1" {
			k.Errorf("got %+v after %+v", second, first)
		}
		k.counts(1, 0)
	})
}

func testRemove(a *area) {
	a.test("only the entry that is named", func(k *kit) {
		k.add("k", "1", "2", "3")
		k.add("other", "4")
		e := k.oldest("k")
		wrongKey, wrongID := e, e
		wrongKey.RoutingKey = "other"
		wrongID.ID = "of nobody"
		others := []dispatcher.OutboxEntry{
			wrongKey, wrongID, {}, {RoutingKey: "k"}, {RoutingKey: "none", ID: e.ID},
		}
		for _, e := range others {
			k.remove(e)
			k.bury(e, "refused", e.AcceptedAt)
		}
		k.counts(4, 0)
		k.remove(e)
		k.counts(3, 0)
		k.holds("k", "2", "3")
		k.holds("other", "4")
	})
	a.test("twice is a success and changes nothing", func(k *kit) {
		k.add("k", "1")
		e := k.oldest("k")
		k.remove(e)
		k.add("k", "2")
		k.remove(e)
		k.bury(e, "refused", e.AcceptedAt)
		k.counts(1, 0)
		k.holds("k", "2")
	})
	a.test("an ID is not used again", func(k *kit) {
		k.add("k", "1")
		e := k.oldest("k")
		k.remove(e)
		k.add("k", "2")
		if again := k.oldest("k"); again.ID == e.ID {
			k.Errorf("ID %q names two entries", e.ID)
		}
	})
	a.test("an empty key is no error", func(k *kit) {
		if _, found, err := k.o.Oldest(k.ctx, "none"); found || err != nil {
			k.Errorf("got %t, %v", found, err)
		}
		k.keys()
		k.counts(0, 0)
	})
}

func testContext(a *area) {
	a.test("an ended one makes no call lie", func(k *kit) {
		ended, cancel := context.WithCancel(k.ctx)
		cancel()
		for i := range 20 {
			before, err := k.o.Counts(k.ctx)
			k.check(err)
			err = k.o.Add(ended, entry("k", fmt.Sprint(i)))
			after, counted := k.o.Counts(k.ctx)
			k.check(counted)
			switch kept := after.Entries - before.Entries; {
			case err == nil && kept != 1:
				k.Errorf("Add returned nil and kept %d entries", kept)
			case errors.Is(err, dispatcher.ErrNotSent) && kept != 0:
				k.Errorf("Add returned %v and kept %d entries", err, kept)
			}
		}
	})
	a.test("one that ends during Add makes it no lie", func(k *kit) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		kept, lost := map[string]bool{}, map[string]bool{}
		for g := range 8 {
			wg.Go(func() {
				for i := range 50 {
					ctx, cancel := context.WithCancel(k.ctx)
					var canceled sync.WaitGroup
					canceled.Go(cancel)
					uuid := fmt.Sprint(g, "-", i)
					err := k.o.Add(ctx, entry(fmt.Sprint("k", g), uuid))
					canceled.Wait()
					mu.Lock()
					kept[uuid], lost[uuid] = err == nil, errors.Is(err, dispatcher.ErrNotSent)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		for g := range 8 {
			for _, uuid := range k.drain(fmt.Sprint("k", g)) {
				if lost[uuid] {
					k.Errorf("%s is kept, and its Add returned ErrNotSent", uuid)
				}
				delete(kept, uuid)
			}
		}
		for uuid, is := range kept {
			if is {
				k.Errorf("%s is not kept, and its Add returned nil", uuid)
			}
		}
	})
}

func testConcurrency(a *area) {
	a.test("nothing is lost, doubled or overtaken", func(k *kit) {
		const keys, each = 8, 100
		var adding, sending sync.WaitGroup
		var done atomic.Bool
		got := make([][]string, keys)
		for i := range keys {
			key := fmt.Sprint("k", i)
			adding.Go(func() {
				for n := range each {
					if err := k.o.Add(k.ctx, entry(key, fmt.Sprintf("%03d", n))); err != nil {
						k.Error(err)
						return
					}
				}
			})
			sending.Go(func() {
				for {
					last := done.Load()
					e, found, err := k.o.Oldest(k.ctx, key)
					if err == nil && found {
						err = k.o.Remove(k.ctx, e)
						got[i] = append(got[i], e.UUID)
					}
					if err != nil || len(got[i]) > each {
						k.Errorf("key %s after %d entries: %v", key, len(got[i]), err)
						return
					}
					if last && !found {
						return
					}
					if _, err := k.o.Counts(k.ctx); err != nil {
						k.Error(err)
					}
					if _, err := k.o.Keys(k.ctx); err != nil {
						k.Error(err)
					}
				}
			})
		}
		adding.Wait()
		done.Store(true)
		sending.Wait()
		for i := range got {
			if len(got[i]) != each {
				k.Errorf("key %d: %d of %d entries", i, len(got[i]), each)
			}
			for n, uuid := range got[i] {
				if uuid != fmt.Sprintf("%03d", n) {
					k.Fatalf("key %d: got %s where %03d was next", i, uuid, n)
				}
			}
		}
		k.counts(0, 0)
	})
}
