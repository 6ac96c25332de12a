package main

import (
	"context"
	"crypto/rand"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

type riverClient = river.Client[pgx.Tx]

// riverPlace is a schema that only this measurement uses.
type riverPlace struct {
	schema string
	pool   *pgxpool.Pool
}

// onRiver calls f with a client for inserting. The pool has 64 connections, so that no publisher waits for one.
func onRiver(f func(m *measurement, p *riverPlace, client *riverClient) error) func(*measurement) error {
	return func(m *measurement) error {
		if m.postgres == nil {
			return missing("PostgreSQL")
		}
		p := &riverPlace{schema: "bench_" + strings.ToLower(rand.Text())}
		if _, err := m.postgres.Exec(m.ctx, "create schema "+p.schema); err != nil {
			return err
		}
		m.cleanup(func() error {
			_, err := m.postgres.Exec(context.Background(), "drop schema "+p.schema+" cascade")
			return err
		})
		cfg := m.postgres.Config()
		cfg.MaxConns = 64
		pool, err := pgxpool.NewWithConfig(m.ctx, cfg)
		if err != nil {
			return err
		}
		m.cleanup(func() error { pool.Close(); return nil })
		p.pool = pool
		migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Schema: p.schema, Logger: quiet})
		if err != nil {
			return err
		}
		if _, err := migrator.Migrate(m.ctx, rivermigrate.DirectionUp, nil); err != nil {
			return err
		}
		client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Schema: p.schema, Logger: quiet})
		if err != nil {
			return err
		}
		return f(m, p, client)
	}
}

func publishWithRiver(goroutines int) func(*measurement) error {
	return onRiver(func(m *measurement, _ *riverPlace, client *riverClient) error {
		m.begin()
		err := oneByOne(goroutines, m.n, func() error {
			_, err := client.Insert(m.ctx, arguments{text, 42}, nil)
			return err
		})
		m.end()
		return err
	})
}

var publishBatchesWithRiver = onRiver(func(m *measurement, _ *riverPlace, client *riverClient) error {
	m.begin()
	err := insertMany(m, client)
	m.end()
	return err
})

func insertMany(m *measurement, client *riverClient) error {
	for left := m.n; left > 0; {
		jobs := make([]river.InsertManyParams, min(left, batch))
		for i := range jobs {
			jobs[i].Args = arguments{text, 42}
		}
		if _, err := client.InsertManyFast(m.ctx, jobs); err != nil {
			return err
		}
		left -= len(jobs)
	}
	return nil
}

// worker starts a client with 10 slots that asks for jobs without a pause. By default it pauses for 100 ms, and 10 slots
// would then run 100 tasks a second.
func (p *riverPlace) worker(m *measurement, cooldown time.Duration, handle func()) (*riverClient, error) {
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(func(context.Context, *river.Job[arguments]) error {
		handle()
		return nil
	}))
	client, err := river.NewClient(riverpgxv5.New(p.pool), &river.Config{
		Schema: p.schema, Logger: quiet, Workers: workers, FetchCooldown: cooldown,
		Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 10}},
	})
	if err != nil {
		return nil, err
	}
	return client, client.Start(m.ctx)
}

var drainWithRiver = onRiver(func(m *measurement, p *riverPlace, client *riverClient) error {
	if err := insertMany(m, client); err != nil {
		return err
	}
	m.settle()
	c := newCounter(m.n)
	m.begin()
	worker, err := p.worker(m, time.Millisecond, c.call)
	if err != nil {
		return err
	}
	err = c.wait(m.ctx)
	m.end()
	m.span = c.span
	return stopRiver(worker, err)
})

var latencyWithRiver = onRiver(func(m *measurement, p *riverPlace, client *riverClient) error {
	handled := make(chan int64, 1)
	worker, err := p.worker(m, 0, func() { handled <- now() })
	if err != nil {
		return err
	}
	err = m.oneAtATime(handled, func(int) error {
		_, err := client.Insert(m.ctx, arguments{text, 42}, nil)
		return err
	})
	return stopRiver(worker, err)
})

func stopRiver(worker *riverClient, err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if stopped := worker.Stop(ctx); err == nil {
		err = stopped
	}
	return err
}
