// Command bench compares dispatcher on RabbitMQ with programs that somebody would write by hand with amqp091-go. It
// measures both in one run and in turns, and prints the ratios. See README.md.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/pprof"
	"slices"
	"text/tabwriter"

	amqp "github.com/rabbitmq/amqp091-go"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Getenv("DISPATCHER_AMQP_CON"), os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, url string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	rounds := flags.Int("rounds", 5, "how often each program is measured")
	n := flags.Int("tasks", 20_000, "tasks in one measurement")
	profile := flags.String("cpuprofile", "", "write a CPU profile of all of it to this `file`")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case *rounds < 1 || *n < 2 || flags.NArg() > 0:
		flags.Usage()
		return 2
	case url == "":
		fmt.Fprintln(stderr, "bench: set DISPATCHER_AMQP_CON to the URL of a RabbitMQ")
		return 2
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(stderr, "bench:", err)
			return 1
		}
		defer f.Close()
		defer pprof.StopCPUProfile()
	}
	if err := compare(ctx, url, *rounds, *n, stdout); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// contest is the same work done by two programs.
type contest struct {
	name          string
	first, second func(p *place, n int) (rate float64, err error)
	rates         [2][]float64 // of first and second, one per round
}

// compare runs the rounds and prints the table.
func compare(ctx context.Context, url string, rounds, n int, out io.Writer) (err error) {
	p, err := newPlace(url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	contests := []*contest{
		{name: "publish, by hand, window 1,000 | PublishBatch", first: publishByHand, second: publishWithLibrary},
		{name: "publish, PublishBatch | PublishAll", first: publishWithLibrary, second: publishAllWithLibrary},
		{name: "drain, by hand, prefetch 10 | Limit 10", first: drainByHand(limit, 1), second: drainWithLibrary(0)},
		{
			name:  "drain, by hand, prefetch 1,000, an ack for 100 | Limit 10, Prefetch 1,000",
			first: drainByHand(manyAhead, 100), second: drainWithLibrary(manyAhead),
		},
	}
	for round := -1; round < rounds; round++ { // the first round warms up
		size := n
		if round < 0 {
			size = min(n, 2000)
		}
		for _, c := range contests {
			programs := []func(*place, int) (float64, error){c.first, c.second}
			for turn := range programs {
				// The programs take turns to begin, so that a slow drift of the machine favours neither.
				who := (turn + round + 2) % 2
				if ctx.Err() != nil {
					return ctx.Err()
				}
				rate, err := programs[who](p, size)
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				if round >= 0 {
					c.rates[who] = append(c.rates[who], rate)
				}
			}
		}
	}
	return print(out, contests, rounds, n)
}

func print(out io.Writer, contests []*contest, rounds, n int) error {
	fmt.Fprintf(out, "%d rounds of %d tasks, bodies of %d bytes; medians [least–most]\n\n", rounds, n, bodyBytes)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "first | second\tfirst/s\tsecond/s\tratio")
	for _, c := range contests {
		var ratios []float64
		for i := range c.rates[0] {
			ratios = append(ratios, c.rates[1][i]/c.rates[0][i])
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n",
			c.name, spread(c.rates[0], "%.0f"), spread(c.rates[1], "%.0f"), spread(ratios, "%.2f"))
	}
	return w.Flush()
}

func spread(values []float64, format string) string {
	v := slices.Sorted(slices.Values(values))
	median := (v[(len(v)-1)/2] + v[len(v)/2]) / 2
	return fmt.Sprintf(format+" ["+format+"–"+format+"]", median, v[0], v[len(v)-1])
}

// place is an exchange and a queue that only this run uses. Both have the same name.
type place struct {
	url  string
	name string
	conn *amqp.Connection
	ch   *amqp.Channel
}

func newPlace(url string) (*place, error) {
	p := &place{url: url, name: "dispatcher.bench." + rand.Text()}
	var err error
	if p.conn, err = amqp.Dial(url); err != nil {
		// The error may show its password.
		return nil, errors.New("cannot connect to the RabbitMQ of DISPATCHER_AMQP_CON")
	}
	if p.ch, err = p.conn.Channel(); err == nil {
		err = p.declare()
	}
	if err != nil {
		return nil, errors.Join(err, p.conn.Close())
	}
	return p, nil
}

// declare declares as the library does: direct, durable, no arguments.
func (p *place) declare() error {
	if err := p.ch.ExchangeDeclare(p.name, "direct", true, false, false, false, nil); err != nil {
		return err
	}
	if _, err := p.ch.QueueDeclare(p.name, true, false, false, false, nil); err != nil {
		return err
	}
	return p.ch.QueueBind(p.name, p.name, p.name, false, nil)
}

// holds checks how many messages are in the queue while nobody consumes it.
func (p *place) holds(want int) error {
	q, err := p.ch.QueueDeclarePassive(p.name, true, false, false, false, nil)
	if err == nil && q.Messages != want {
		err = fmt.Errorf("%d messages in the queue, not %d", q.Messages, want)
	}
	return err
}

func (p *place) purge() error {
	_, err := p.ch.QueuePurge(p.name, false)
	return err
}

func (p *place) close() error {
	var errs []error
	for _, q := range []string{p.name, p.name + ".dead", p.name + ".suspects"} {
		_, err := p.ch.QueueDelete(q, false, false, false)
		errs = append(errs, err)
	}
	return errors.Join(append(errs, p.ch.ExchangeDelete(p.name, false, false), p.conn.Close())...)
}
