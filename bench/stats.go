package main

import (
	"math"
	"slices"
	"time"
)

// none is a figure that could not be measured.
var none = math.NaN()

// sample is the result of one measurement. A figure that does not apply or could not be measured is none.
type sample struct {
	rate     float64 // tasks a second
	p50, p99 float64 // milliseconds
	client   float64 // CPU seconds per 100,000 tasks, of this process
	broker   float64 // the same, of the broker's processes
	allocs   float64 // allocations a task, of this process
	peak     float64 // the most memory that this process had, in MiB
	foreign  float64 // cores that other programs used meanwhile
}

// speed is what ratios compare: the rate, or how many tasks fit into a second one after another.
func (s sample) speed() float64 {
	if !math.IsNaN(s.p50) {
		return 1000 / s.p50
	}
	return s.rate
}

// known returns one figure of the samples, without those that could not be measured.
func known(samples []sample, figure func(sample) float64) []float64 {
	var values []float64
	for _, s := range samples {
		if v := figure(s); !math.IsNaN(v) {
			values = append(values, v)
		}
	}
	return values
}

// ratios divides the speed of each sample by that of the sample of the same round.
func ratios(samples, base []sample) []float64 {
	var values []float64
	for i := range min(len(samples), len(base)) {
		values = append(values, samples[i].speed()/base[i].speed())
	}
	return values
}

// median returns none if there are no values.
func median(values []float64) float64 {
	if len(values) == 0 {
		return none
	}
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// percentile returns the latency, in milliseconds, that the fraction p of all does not exceed.
func percentile(latencies []time.Duration, p float64) float64 {
	if len(latencies) == 0 {
		return none
	}
	v := slices.Sorted(slices.Values(latencies))
	i := int(math.Ceil(p*float64(len(v)))) - 1
	return float64(v[max(i, 0)]) / float64(time.Millisecond)
}
