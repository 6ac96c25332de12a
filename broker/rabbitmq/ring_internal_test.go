package rabbitmq

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// The ring agrees with a plain list, whatever is answered and however late.
func TestRingHoldsWhatWasNotAnswered(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var r ring
	var want []*flight // by tag
	remove := func(f *flight) {
		r.remove(f)
		want = slices.DeleteFunc(want, func(g *flight) bool { return g == f })
	}
	answer := func(tag uint64, multiple bool) {
		var got, due []*flight
		for _, f := range want {
			if f.tag == tag || multiple && f.tag < tag {
				due = append(due, f)
			}
		}
		r.each(tag, multiple, func(f *flight) {
			got = append(got, f)
			remove(f)
		})
		slices.SortFunc(got, func(a, b *flight) int { return int(a.tag) - int(b.tag) })
		if !slices.Equal(got, due) {
			t.Fatalf("answer %d, multiple %v: %d flights, want %d", tag, multiple, len(got), len(due))
		}
	}
	for range 20 * ringSize {
		f := &flight{}
		r.put(f)
		want = append(want, f)
		if r.last%1000 == 1 {
			continue // without an answer for long
		}
		for len(want) > 100 {
			answer(want[20+random.IntN(len(want)-20)].tag, false)
		}
	}
	if len(r.late) == 0 {
		t.Error("no flight was late")
	}
	if all := r.all(); r.n != len(want) || !slices.Equal(all, want) {
		t.Errorf("%d flights, counted as %d, want %d", len(all), r.n, len(want))
	}
	if r.oldest() != want[0] || r.newest() != want[len(want)-1] {
		t.Error("wrong oldest or newest")
	}
	answer(want[len(want)/2].tag, true)
	answer(r.last+1000, false) // nothing was written with that tag
	answer(r.last+1000, true)
	if r.n != 0 || len(r.late) != 0 || len(r.all()) != 0 {
		t.Errorf("%d flights are left", r.n)
	}
}
