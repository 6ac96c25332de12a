// Command bench compares Dispatcher with programs that somebody would write by hand, and with other libraries. It also
// measures how Dispatcher behaves as the load grows. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime/pprof"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	if err := o.measure(ctx, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// options are the flags.
type options struct {
	rounds  int
	tasks   int
	rows    *regexp.Regexp
	growth  bool
	plots   string
	page    string
	profile string
}

func parse(args []string, stderr io.Writer) (options, error) {
	o := options{rows: regexp.MustCompile("")}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 5, "measure each row `n` times")
	flags.IntVar(&o.tasks, "tasks", 20_000, "`n` tasks in one measurement; slow rows use a fraction of it")
	flags.Func("rows", "measure only the work, and the curves, whose name matches this `regexp`", func(s string) (err error) {
		o.rows, err = regexp.Compile("(?i)" + s)
		return err
	})
	flags.BoolVar(&o.growth, "growth", false, "measure growth instead of comparing")
	flags.StringVar(&o.plots, "plots", "", "write the plots, as SVG, to this `folder`")
	flags.StringVar(&o.page, "page", "", "replace the generated parts of this Markdown `file`")
	flags.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile of the whole run to this `file`")
	err := flags.Parse(args)
	if err == nil && (o.rounds < 1 || o.tasks < 100 || flags.NArg() > 0) {
		err = errors.New("bench: want at least 1 round, at least 100 tasks, and flags only")
		fmt.Fprintln(stderr, err)
		flags.Usage()
	}
	return o, err
}

func (o options) measure(ctx context.Context, stdout, stderr io.Writer) (err error) {
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	s, err := findServices(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	b := &bench{services: s, progress: stderr}
	if o.growth {
		return o.measureGrowth(ctx, b, stdout)
	}
	return o.compare(ctx, b, stdout)
}

// compare measures all rows and prints the table.
func (o options) compare(ctx context.Context, b *bench, stdout io.Writer) error {
	works := selected(allWork(), o.rows, func(w *work) string { return w.name })
	if len(works) == 0 {
		return errors.New("no work matches -rows")
	}
	if err := b.rounds(ctx, works, o.rounds, o.tasks); err != nil {
		return err
	}
	parts := map[string]string{
		"conditions": b.conditions(o.rounds, o.tasks),
		"table":      table(works),
		"guarantees": guarantees(works),
	}
	for _, name := range []string{"conditions", "table", "guarantees"} {
		fmt.Fprintln(stdout, parts[name])
	}
	if o.plots != "" {
		if err := plotRatios(o.plots, works); err != nil {
			return err
		}
	}
	return o.write(parts)
}

// measureGrowth measures all curves and prints one table for each.
func (o options) measureGrowth(ctx context.Context, b *bench, stdout io.Writer) error {
	curves := selected(allCurves(), o.rows, func(c *curve) string { return c.name })
	parts := map[string]string{}
	if o.rows.MatchString("idle") {
		idle, err := b.idle(ctx, []int{1, 10, 100}, 10)
		if err != nil {
			return fmt.Errorf("idle: %w", err)
		}
		parts["growth idle"] = idle
		fmt.Fprintf(stdout, "Idle workers\n\n%s\n", idle)
	}
	for _, c := range curves {
		if err := b.measure(ctx, c, o.rounds, o.tasks); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		parts["growth "+c.name] = c.table()
		fmt.Fprintf(stdout, "%s\n\n%s\n", c.title, c.table())
		if o.plots != "" {
			if err := plotCurve(o.plots, c); err != nil {
				return err
			}
		}
	}
	if len(curves) > 0 {
		parts["growth conditions"] = b.conditions(min(o.rounds, maxPasses), o.tasks)
		fmt.Fprintln(stdout, parts["growth conditions"])
	}
	return o.write(parts)
}

func (o options) write(parts map[string]string) error {
	if o.page == "" {
		return nil
	}
	old, err := os.ReadFile(o.page)
	if err != nil {
		return err
	}
	page, err := replaceParts(string(old), parts)
	if err != nil {
		return fmt.Errorf("%s: %w", o.page, err)
	}
	return os.WriteFile(o.page, []byte(page), 0o644)
}

func selected[T any](all []T, names *regexp.Regexp, name func(T) string) []T {
	var some []T
	for _, one := range all {
		if names.MatchString(name(one)) {
			some = append(some, one)
		}
	}
	return some
}
