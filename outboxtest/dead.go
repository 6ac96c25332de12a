package outboxtest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

func testDead(a *area) {
	noon := time.Date(2026, 1, 1, 12, 0, 0, 1, time.UTC)
	a.test("a buried entry is out of the way", func(k *kit) {
		k.add("k", "1", "2")
		k.add("alone", "3")
		k.bury(k.oldest("k"), "no queue", noon)
		k.bury(k.oldest("alone"), "no queue", noon)
		k.counts(1, 2)
		k.keys("k")
		if _, found, err := k.o.Oldest(k.ctx, "alone"); found || err != nil {
			k.Errorf("got %t, %v", found, err)
		}
		k.holds("k", "2")
	})
	a.test("it is whole, with its reason", func(k *kit) {
		e := fullEntry()
		k.check(k.o.Add(k.ctx, e))
		buried := k.bury(k.oldest(e.RoutingKey), "NO_ROUTE: ü", noon)
		dead := k.dead()
		if len(dead) != 1 {
			k.Fatalf("%d dead", len(dead))
		}
		k.same(dead[0], buried)
		if dead[0].ID != buried.ID {
			k.Errorf("ID %q became %q", buried.ID, dead[0].ID)
		}
	})
	a.test("twice changes nothing", func(k *kit) {
		k.add("k", "1")
		e := k.oldest("k")
		k.bury(e, "first", noon)
		k.bury(e, "second", noon.Add(time.Hour))
		k.remove(e)
		k.counts(0, 1)
		if dead := k.dead(); len(dead) != 1 || dead[0].Refused != "first" {
			k.Errorf("dead %+v", dead)
		}
	})
	a.test("in the order of their refusal", func(k *kit) {
		k.add("a", "1", "2")
		k.add("b", "3")
		for i, key := range []string{"b", "a", "a"} {
			k.bury(k.oldest(key), "no", noon.Add(time.Duration(i)))
		}
		var got []string
		for _, e := range k.dead() {
			got = append(got, e.UUID)
		}
		if want := []string{"3", "1", "2"}; !slices.Equal(got, want) {
			k.Errorf("got %q, want %q", got, want)
		}
	})
	a.test("a retried one is sent again, behind the others", func(k *kit) {
		if k.h.Retry == nil {
			k.Skip("the harness has no Retry")
		}
		e := fullEntry()
		k.check(k.o.Add(k.ctx, e))
		k.add(e.RoutingKey, "2")
		k.bury(k.oldest(e.RoutingKey), "no", noon)
		var added []string
		if n, ok := k.o.(dispatcher.OutboxNotifier); ok {
			n.Notify(func(key string) { added = append(added, key) })
		}
		dead := k.oneDead()
		for i, want := range []bool{true, false} {
			if found, err := k.h.Retry(k.o, dead); found != want || err != nil {
				k.Errorf("try %d: got %t, %v", i, found, err)
			}
		}
		if _, ok := k.o.(dispatcher.OutboxNotifier); ok && !slices.Equal(added, []string{e.RoutingKey}) {
			k.Errorf("notified of %q", added)
		}
		k.counts(2, 0)
		second := k.oldest(e.RoutingKey)
		if second.UUID != "2" {
			k.Fatalf("the oldest is %q", second.UUID)
		}
		k.remove(second)
		k.same(k.oldest(e.RoutingKey), e)
		k.drain(e.RoutingKey)
		k.counts(0, 0)
	})
	a.test("a removed one is gone", func(k *kit) {
		if k.h.Remove == nil {
			k.Skip("the harness has no Remove")
		}
		k.add("k", "1", "2")
		k.bury(k.oldest("k"), "no", noon)
		waiting := k.oldest("k")
		if found, err := k.h.Remove(k.o, waiting); found || err != nil {
			k.Errorf("an entry that waits: got %t, %v", found, err)
		}
		dead := k.oneDead()
		for i, want := range []bool{true, false} {
			if found, err := k.h.Remove(k.o, dead); found != want || err != nil {
				k.Errorf("try %d: got %t, %v", i, found, err)
			}
		}
		k.counts(1, 0)
		k.holds("k", "2")
	})
}

func testBound(a *area) {
	limited := func(name string, f func(k *kit)) {
		a.test(name, func(k *kit) {
			k.o = k.h.New(k, 3)
			k.add("k", "1", "2")
			k.add("other", "3")
			f(k)
		})
	}
	full := func(k *kit, key string) {
		k.Helper()
		err := k.o.Add(k.ctx, entry(key, "x"))
		if !errors.Is(err, dispatcher.ErrOutboxFull) || !errors.Is(err, dispatcher.ErrNotSent) {
			k.Errorf("full: got %v, want ErrOutboxFull", err)
		}
	}
	limited("a full one keeps what it has", func(k *kit) {
		full(k, "k")
		full(k, "new")
		k.counts(3, 0)
		k.holds("k", "1", "2")
		k.holds("other", "3")
		k.keys()
	})
	limited("there is room again after Remove", func(k *kit) {
		k.remove(k.oldest("k"))
		k.add("k", "4")
		full(k, "k")
		k.holds("k", "2", "4")
	})
	limited("Bury needs no room and makes none", func(k *kit) {
		k.bury(k.oldest("k"), "no", time.Now())
		full(k, "k")
		k.counts(2, 1)
	})
	limited("there is room again after a dead one was removed", func(k *kit) {
		if k.h.Remove == nil {
			k.Skip("the harness has no Remove")
		}
		k.bury(k.oldest("k"), "no", time.Now())
		_, err := k.h.Remove(k.o, k.oneDead())
		k.check(err)
		k.add("k", "4")
		full(k, "k")
	})
	limited("Retry needs no room", func(k *kit) {
		if k.h.Retry == nil {
			k.Skip("the harness has no Retry")
		}
		k.bury(k.oldest("k"), "no", time.Now())
		_, err := k.h.Retry(k.o, k.oneDead())
		k.check(err)
		k.holds("k", "2", "1")
	})
}

func testRestart(a *area) {
	restarted := func(name string, f func(k *kit, restart func())) {
		a.test(name, func(k *kit) {
			if k.h.Restart == nil {
				k.Skip("the harness has no Restart")
			}
			f(k, func() { k.o = k.h.Restart(k, k.o) })
		})
	}
	restarted("everything is there", func(k *kit, restart func()) {
		e := fullEntry()
		k.check(k.o.Add(k.ctx, e))
		k.add("k", "1", "2", "3", "4")
		k.remove(k.oldest("k"))
		k.bury(k.oldest("k"), "no", time.Now())
		restart()
		k.counts(3, 1)
		k.keys("k", e.RoutingKey)
		k.same(k.oldest(e.RoutingKey), e)
		if dead := k.dead(); len(dead) != 1 || dead[0].UUID != "2" || dead[0].Refused != "no" {
			k.Errorf("dead %+v", dead)
		}
		k.holds("k", "3", "4")
	})
	restarted("new entries are behind old ones, with IDs of their own", func(k *kit, restart func()) {
		seen := map[string]bool{}
		for i := range 5 {
			k.add("k", fmt.Sprint(i))
			restart()
			e := k.oldest("k")
			if seen[e.ID] || e.UUID != fmt.Sprint(i) {
				k.Errorf("round %d: entry %+v", i, e)
			}
			seen[e.ID] = true
			k.add("k", fmt.Sprint(i, "+"))
			k.remove(e)
			restart()
			k.remove(e) // again, as after a crash
			k.holds("k", fmt.Sprint(i, "+"))
		}
	})
}
