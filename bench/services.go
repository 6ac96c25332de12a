package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
)

// services are the servers that the rows use. A version is empty if that server is not there.
type services struct {
	url             string // of RabbitMQ
	rabbit          *amqp.Connection
	rabbitVersion   string
	rabbitProcess   int // 0: unknown
	redisAddress    string
	redis           *redis.Client
	redisVersion    string
	redisProcess    int
	postgres        *pgxpool.Pool
	postgresVersion string
	postgresServer  int // the process that is the parent of all others

	patience time.Duration // how long a measurement waits for a quiet machine
}

// missing is the error of a row whose server is not there.
type missing string

func (m missing) Error() string { return "there is no " + string(m) }

// findServices connects to the servers that the environment names.
func findServices(ctx context.Context) (*services, error) {
	s := &services{url: os.Getenv("DISPATCHER_AMQP_CON"), patience: 2 * time.Second}
	if s.url == "" {
		return nil, errors.New("set DISPATCHER_AMQP_CON to the URL of a RabbitMQ, or run make bench")
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	uri, err := amqp.ParseURI(s.url)
	if err != nil || !local(uri.Host) {
		return nil, errors.New("DISPATCHER_AMQP_CON must be a RabbitMQ on this machine: bench puts it under load")
	}
	if s.rabbit, err = amqp.Dial(s.url); err != nil {
		return nil, errors.New("cannot connect to the RabbitMQ of DISPATCHER_AMQP_CON") // err may show its password
	}
	s.rabbitVersion, _ = s.rabbit.Properties["version"].(string)
	if ctl := os.Getenv("DISPATCHER_RABBITMQCTL"); ctl != "" {
		out, err := exec.CommandContext(ctx, ctl, "eval", "list_to_integer(os:getpid()).").Output()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("ask RabbitMQ for its process: %w", err), s.close())
		}
		s.rabbitProcess = number(strings.TrimSpace(string(out)))
	}
	if err := errors.Join(s.findRedis(ctx), s.findPostgres(ctx)); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *services) findRedis(ctx context.Context) error {
	s.redisAddress = os.Getenv("DISPATCHER_BENCH_REDIS")
	if s.redisAddress == "" {
		return nil
	}
	if host, _, err := net.SplitHostPort(s.redisAddress); err != nil || !local(host) {
		return errors.New("DISPATCHER_BENCH_REDIS must be HOST:PORT of a Redis on this machine")
	}
	s.redis = redis.NewClient(&redis.Options{Addr: s.redisAddress})
	info, err := s.redis.Info(ctx, "server").Result()
	for line := range strings.Lines(info) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), ":"); name {
		case "redis_version":
			s.redisVersion = value
		case "process_id":
			s.redisProcess = number(value)
		}
	}
	return err
}

func (s *services) findPostgres(ctx context.Context) error {
	url := os.Getenv("DISPATCHER_BENCH_POSTGRES")
	if url == "" {
		return nil
	}
	var err error
	if s.postgres, err = pgxpool.New(ctx, url); err != nil || !local(s.postgres.Config().ConnConfig.Host) {
		return errors.New("DISPATCHER_BENCH_POSTGRES must be the URL of a PostgreSQL on this machine") // err may show its password
	}
	var backend int
	err = s.postgres.QueryRow(ctx, "select split_part(current_setting('server_version'), ' ', 1), pg_backend_pid()").
		Scan(&s.postgresVersion, &backend)
	s.postgresServer = parentOf(backend)
	return err
}

// local reports whether a host is this machine.
func local(host string) bool { return host == "localhost" || net.ParseIP(host).IsLoopback() }

func (s *services) close() error {
	var errs []error
	if s.redis != nil {
		errs = append(errs, s.redis.Close())
	}
	if s.postgres != nil {
		s.postgres.Close()
	}
	return errors.Join(append(errs, s.rabbit.Close())...)
}
