package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

func TestParse(t *testing.T) {
	t.Parallel()
	o, err := parse([]string{"-rounds", "7", "-tasks", "300", "-rows", "DRAIN.*quorum", "-growth", "-plots", "p", "-page", "f"}, io.Discard)
	if err != nil || o.rounds != 7 || o.tasks != 300 || !o.growth || o.plots != "p" || o.page != "f" {
		t.Errorf("%+v, %v", o, err)
	}
	works := selected(allWork(), o.rows, func(w *work) string { return w.name })
	if len(works) != 1 || works[0].name != "drain, Limit 10, quorum queue" {
		t.Errorf("-rows selects %d works", len(works))
	}
	for _, args := range [][]string{{"-rounds", "0"}, {"-tasks", "1"}, {"-rows", "("}, {"more"}, {"-unknown"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}

func TestOnlyThisMachineIsPutUnderLoad(t *testing.T) {
	t.Setenv("DISPATCHER_AMQP_CON", "amqp://user:secret@192.0.2.1/")
	var stderr strings.Builder
	if code := run(context.Background(), nil, io.Discard, &stderr); code != 1 || strings.Contains(stderr.String(), "secret") {
		t.Errorf("exit code %d: %s", code, &stderr)
	}
	for host, want := range map[string]bool{"localhost": true, "127.0.0.1": true, "::1": true, "192.0.2.1": false, "example.org": false, "": false} {
		if got := local(host); got != want {
			t.Errorf("local(%q) = %v", host, got)
		}
	}
}

func TestWithoutRabbitMQItSaysWhatToDo(t *testing.T) {
	t.Setenv("DISPATCHER_AMQP_CON", "")
	var stderr strings.Builder
	if code := run(context.Background(), nil, io.Discard, &stderr); code != 1 || !strings.Contains(stderr.String(), "make bench") {
		t.Errorf("exit code %d: %s", code, &stderr)
	}
}

// Every row and every curve runs once with few tasks. The figures mean nothing.
func TestEveryRowAndEveryCurveWorks(t *testing.T) {
	url := os.Getenv("DISPATCHER_AMQP_CON")
	if uri, err := amqp.ParseURI(url); url == "" || err == nil && !local(uri.Host) {
		t.Skip("DISPATCHER_AMQP_CON is not a RabbitMQ on this machine")
	}
	ctx := t.Context()
	s, err := findServices(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	s.patience = 0
	b := &bench{services: s, progress: io.Discard}
	works, curves, plots := allWork(), allCurves(), t.TempDir()
	if err := b.rounds(ctx, works, 1, 50); err != nil {
		t.Fatal(err)
	}
	for _, c := range curves {
		c.xs = c.xs[:2]
		if err := b.measure(ctx, c, 1, 50); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err := plotCurve(plots, c); err != nil {
			t.Error(err)
		}
		if got := c.table(); strings.Count(got, "\n") < 4 {
			t.Errorf("%s: %s", c.name, got)
		}
	}
	if _, err := b.idle(ctx, []int{1}, 1); err != nil {
		t.Error(err)
	}
	for _, w := range works {
		for _, r := range w.rows {
			if len(r.samples) != 1 && r.missing == "" {
				t.Errorf("%s: %s has %d samples", w.name, r.program, len(r.samples))
			}
		}
	}
	if err := plotRatios(plots, works); err != nil {
		t.Error(err)
	}
	if files, _ := filepath.Glob(filepath.Join(plots, "*.svg")); len(files) != len(curves)+1 {
		t.Errorf("%d plots: %q", len(files), files)
	}
}

// The committed page has a place for everything that is generated.
func TestThePageHasAllParts(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]string{"conditions": "", "table": "", "guarantees": "", "growth idle": "", "growth conditions": ""}
	for _, c := range allCurves() {
		parts["growth "+c.name] = ""
		if !strings.Contains(string(page), "plots/"+c.name+".svg") {
			t.Errorf("the page does not show the plot of %s", c.name)
		}
	}
	if _, err := replaceParts(string(page), parts); err != nil {
		t.Error(err)
	}
}
