package engine

import "testing"

type period struct{ short, bytes, waiting, want int }

func TestPace(t *testing.T) {
	t.Parallel()
	const kb = 1 << 10
	for _, c := range []struct {
		name    string
		limit   int
		periods []period
	}{
		{"a worker of long calls fetches nothing ahead", 10, []period{{0, 0, 0, 10}, {0, 0, 0, 10}}},
		{"it fetches what the slots finish in two periods", 10, []period{{50, 50 * kb, 0, 60}, {50, 50 * kb, 40, 60}, {100, 100 * kb, 40, 160}}},
		{"small changes are not worth it", 10, []period{{20, kb, 0, 30}, {20, kb, 0, 30}, {10, kb, 0, 30}, {29, kb, 0, 30}}},
		{"no more than the maximum", 10, []period{{600, kb, 0, 610}, {600, kb, 0, 1000}, {9000, kb, 900, 1000}}},
		{"a limit above the maximum", 2000, []period{{5000, kb, 0, 2000}, {5000, kb, 0, 2000}}},
		{"large bodies", 10, []period{{100, 100 << 20, 0, 16}, {100, 100 << 20, 0, 16}}},
		{"a body above the maximum", 10, []period{{5, 5 << 25, 0, 10}}},
		{"bodies that become large", 1, []period{{500, kb, 0, 501}, {100, 100 << 20, 100, 16}}},
		{"calls that become long", 2, []period{
			{100, kb, 0, 102}, {0, 0, 100, 102},
			{0, 0, 100, 102}, // perhaps the machine was busy
			{0, 0, 100, 2},
		}},
		{"calls that become longer", 1, []period{
			{100, kb, 0, 101}, {100, kb, 100, 101}, {10, kb, 100, 101}, {10, kb, 90, 101}, {10, kb, 80, 21},
		}},
		{"a slot waits for the machine once", 1, []period{{400, kb, 0, 401}, {0, 0, 400, 401}, {0, 0, 400, 401}, {50, kb, 60, 401}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := pace{limit: c.limit, present: c.limit}
			for i, x := range c.periods {
				if p.present = p.next(x.short, x.bytes, x.waiting); p.present != x.want {
					t.Fatalf("after period %d: %d, want %d", i+1, p.present, x.want)
				}
			}
		})
	}
}

// A worker whose calls are short and long in turn would otherwise fetch and give back all the time.
func TestPaceDoesNotGrowSoonAfterTooMuch(t *testing.T) {
	t.Parallel()
	p := pace{limit: 1, present: 500, over: 1}
	p.present = p.next(0, 0, 100)
	quiet := 0
	for ; p.present == 1; quiet++ {
		p.present = p.next(50, 50, 0)
	}
	if want := int(calmTime / paceEvery); quiet != want {
		t.Errorf("it grew after %d periods, want %d", quiet, want)
	}
}

// After a pause it need not wait for whole periods if the slots are quick.
func TestPaceBeginsQuickly(t *testing.T) {
	t.Parallel()
	for short, want := range map[int]int{3: 13, 10: 20, 11: 120, 200: 1000} {
		p := pace{limit: 10, present: 5, before: 9999}
		if got := p.first(short, short, 0); got != want {
			t.Errorf("after %d calls: %d, want %d", short, got, want)
		}
	}
}

// A consumer that could not be asked to go on is asked again.
func TestPaceGoesOnAfterAFailure(t *testing.T) {
	t.Parallel()
	p := pace{limit: 3}
	if got := p.next(0, 0, 10); got != 3 {
		t.Errorf("%d, want the limit", got)
	}
}
