package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

// bench measures rows and curves.
type bench struct {
	*services
	progress io.Writer
	foreign  []float64 // cores that other programs used, of each measurement
}

// rounds measures every row once a round. The rows of a work change their order from round to round, so that no drift
// of the machine favours one of them. A first round, with few tasks, warms up and is not counted.
func (b *bench) rounds(ctx context.Context, works []*work, rounds, tasks int) error {
	for round := range rounds + 1 {
		warmUp := round == 0
		for _, w := range works {
			n := max(int(float64(tasks)*w.share), 10)
			if warmUp {
				n = min(n, 500)
			}
			for _, r := range inTurn(w.rows, round) {
				if r.missing != "" {
					continue
				}
				s, _, err := b.take(ctx, b.process(r.server), n, r.run)
				var gone missing
				if errors.As(err, &gone) {
					r.missing = gone.Error()
					continue
				}
				if err != nil {
					return fmt.Errorf("%s: %s: %w", w.name, r.program, err)
				}
				if !warmUp {
					r.samples = append(r.samples, s)
					b.foreign = append(b.foreign, s.foreign)
				}
			}
		}
		fmt.Fprintf(b.progress, "round %d of %d\n", round, rounds)
	}
	return nil
}

// inTurn returns the rows in the order of a round: each begins once, and every other round runs backwards.
func inTurn[T any](rows []T, round int) []T {
	start := round / 2 % len(rows)
	turn := append(slices.Clone(rows[start:]), rows[:start]...)
	if round%2 == 1 {
		slices.Reverse(turn)
	}
	return turn
}

func (s *services) process(of server) int {
	switch of {
	case rabbitMQ:
		return s.rabbitProcess
	case redisServer:
		return s.redisProcess
	case postgreSQL:
		return s.postgresServer
	}
	return 0
}
