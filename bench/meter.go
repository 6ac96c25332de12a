package main

import (
	"context"
	"errors"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

// measurement is one run of a row: what the row needs for its work, and the meter that it starts and stops.
type measurement struct {
	ctx context.Context
	*services
	n int // tasks

	// The row may set these. Otherwise the rate is that of n tasks between begin and end.
	span      time.Duration   // from the first task to the last
	latencies []time.Duration // of single tasks
	did       int             // the tasks that were run, if fewer than n

	broker   int // the process of the broker that this row uses, or 0
	atBegin  reading
	atEnd    reading
	peak     float64
	cleanups []func() error
}

// reading is the state of all meters at one moment.
type reading struct {
	at                       time.Time
	client, broker, machine  time.Duration
	brokerKnown, peakIsFresh bool
	mallocs                  uint64
}

func (m *measurement) read() reading {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	r := reading{at: time.Now(), client: cpuOfSelf(), machine: cpuOfMachine(), mallocs: mem.Mallocs}
	r.broker, r.brokerKnown = cpuOf(m.broker)
	return r
}

// begin starts the meter. Everything before it is preparation.
func (m *measurement) begin() {
	fresh := forgetPeak()
	m.atBegin = m.read()
	m.atBegin.peakIsFresh = fresh
}

// end stops the meter. Everything after it is for cleaning up.
func (m *measurement) end() {
	m.peak = memoryOf(os.Getpid(), "VmHWM")
	m.atEnd = m.read()
}

// cleanup has f called after the measurement. The last call to cleanup is the first to be carried out.
func (m *measurement) cleanup(f func() error) { m.cleanups = append(m.cleanups, f) }

func (m *measurement) clean() error {
	var errs []error
	for i := len(m.cleanups) - 1; i >= 0; i-- {
		errs = append(errs, m.cleanups[i]())
	}
	return errors.Join(errs...)
}

// settle waits until neither this process nor the broker is busy with what came before.
func (m *measurement) settle() {
	debug.FreeOSMemory()
	for deadline := time.Now().Add(m.patience); time.Now().Before(deadline); {
		before := m.read()
		time.Sleep(50 * time.Millisecond)
		after := m.read()
		if after.broker-before.broker <= tick && after.client-before.client <= tick {
			return
		}
	}
}

// take runs f, which calls begin and end, and returns what the meter shows. A measurement has four minutes.
func (s *services) take(ctx context.Context, broker, n int, f func(*measurement) error) (sample, *measurement, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	m := &measurement{ctx: ctx, services: s, n: n, broker: broker}
	m.settle()
	err := f(m)
	if err = errors.Join(err, m.clean()); err != nil {
		return sample{}, m, err
	}
	return m.sample(), m, nil
}

func (m *measurement) sample() sample {
	a, z := m.atBegin, m.atEnd
	did := m.n
	if m.did > 0 {
		did = m.did
	}
	elapsed := z.at.Sub(a.at)
	per100k := func(d time.Duration) float64 { return d.Seconds() / float64(did) * 100_000 }
	s := sample{
		p50: percentile(m.latencies, 0.5), p99: percentile(m.latencies, 0.99),
		rate: float64(did) / elapsed.Seconds(), client: per100k(z.client - a.client), broker: none,
		allocs: float64(z.mallocs-a.mallocs) / float64(did), peak: none,
		foreign: (z.machine - a.machine - (z.client - a.client) - (z.broker - a.broker)).Seconds() / elapsed.Seconds(),
	}
	if m.span > 0 {
		s.rate = float64(did-1) / m.span.Seconds()
	}
	if m.latencies != nil {
		s.rate = none
	}
	if a.brokerKnown && z.brokerKnown {
		s.broker = per100k(z.broker - a.broker)
	}
	if a.peakIsFresh {
		s.peak = m.peak
	}
	return s
}
