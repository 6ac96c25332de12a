package main

import (
	"context"
	"time"
)

// idle measures what servers with workers that have nothing to do cost, and returns a table.
func (b *bench) idle(ctx context.Context, workers []int, seconds int) (string, error) {
	t := [][]string{{"workers", "client, % of a core", "RabbitMQ, % of a core", "client MiB", "time to make and start them"}}
	for _, n := range workers {
		var start time.Duration
		s, m, err := b.take(ctx, b.rabbitProcess, 1, func(m *measurement) error {
			p, server, err := m.start(classic, n)
			if err != nil {
				return err
			}
			began := time.Now()
			all, err := newWorkers(server, p, 10, func(string, int) {})
			if err != nil {
				return err
			}
			if err := startAll(server, all); err != nil {
				return err
			}
			start = time.Since(began)
			m.settle()
			m.begin()
			select {
			case <-time.After(time.Duration(seconds) * time.Second):
			case <-m.ctx.Done():
			}
			m.end()
			return m.ctx.Err()
		})
		if err != nil {
			return "", err
		}
		percent := func(per100k float64) string {
			return fixed(per100k/100_000/m.atEnd.at.Sub(m.atBegin.at).Seconds()*100, 2)
		}
		t = append(t, []string{thousands(float64(n)), percent(s.client), percent(s.broker), fixed(s.peak, 0), milliseconds(float64(start) / float64(time.Millisecond))})
	}
	return markdown(t), nil
}
