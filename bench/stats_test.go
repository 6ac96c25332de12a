package main

import (
	"math"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	t.Parallel()
	for want, values := range map[float64][]float64{2: {3, 1, 2}, 2.5: {4, 1, 2, 3}, 7: {7}} {
		if got := median(values); got != want {
			t.Errorf("median(%v) = %v, want %v", values, got, want)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median(nil) = %v", got)
	}
}

func TestPercentileIsALatencyThatWasSeen(t *testing.T) {
	t.Parallel()
	var latencies []time.Duration
	for i := range 200 {
		latencies = append(latencies, time.Duration(200-i)*time.Millisecond)
	}
	if p50, p99 := percentile(latencies, 0.5), percentile(latencies, 0.99); p50 != 100 || p99 != 198 {
		t.Errorf("p50 %v, p99 %v", p50, p99)
	}
	if got := percentile(latencies[:1], 0.99); got != 200 {
		t.Errorf("p99 of one: %v", got)
	}
}

// A ratio above 1 means faster, whether a row has a rate or a latency.
func TestRatiosAreMadeWithinARound(t *testing.T) {
	t.Parallel()
	rate := func(r float64) sample { return sample{rate: r, p50: none} }
	got := ratios([]sample{rate(100), rate(300)}, []sample{rate(200), rate(150)})
	if len(got) != 2 || got[0] != 0.5 || got[1] != 2 {
		t.Errorf("of rates: %v", got)
	}
	got = ratios([]sample{{rate: none, p50: 4}}, []sample{{rate: none, p50: 2}})
	if len(got) != 1 || got[0] != 0.5 {
		t.Errorf("of latencies: %v", got)
	}
}

func TestEveryRowBeginsARoundAndIsTheLastOfAnother(t *testing.T) {
	t.Parallel()
	rows := []int{0, 1, 2}
	first, last := map[int]bool{}, map[int]bool{}
	for round := range 6 {
		turn := inTurn(rows, round)
		first[turn[0]], last[turn[2]] = true, true
	}
	if len(first) != 3 || len(last) != 3 {
		t.Errorf("first %v, last %v", first, last)
	}
}
