package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// table returns the comparison as Markdown.
func table(works []*work) string {
	t := [][]string{{"work", "program", "tasks/s, or latency", "ratio to by hand", "client CPU", "broker CPU", "allocs", "peak MiB", "see"}}
	notes := noteNumbers(works)
	for _, w := range works {
		for i, r := range w.rows {
			name := ""
			if i == 0 {
				name = w.name
			}
			t = append(t, slices.Concat([]string{name, r.program}, r.cells(w.rows[0]), []string{strconv.Itoa(notes[r.guarantees])}))
		}
	}
	return markdown(t)
}

func (r *row) cells(base *row) []string {
	if r.missing != "" {
		return []string{"– (" + r.missing + ")", "–", "–", "–", "–", "–"}
	}
	figure := func(f func(sample) float64) float64 { return median(known(r.samples, f)) }
	rate := figure(func(s sample) float64 { return s.rate })
	speed := thousands(rate)
	if r.server == nothing {
		speed += fmt.Sprintf(" (%s ns a task)", thousands(1e9/rate))
	}
	if p50 := figure(func(s sample) float64 { return s.p50 }); !math.IsNaN(p50) {
		speed = fmt.Sprintf("p50 %s, p99 %s", milliseconds(p50), milliseconds(figure(func(s sample) float64 { return s.p99 })))
	}
	ratio := "1"
	if r != base {
		ratio = spread(ratios(r.samples, base.samples))
	}
	return []string{
		speed, ratio,
		fixed(figure(func(s sample) float64 { return s.client }), 2),
		fixed(figure(func(s sample) float64 { return s.broker }), 2),
		fixed(figure(func(s sample) float64 { return s.allocs }), 0),
		fixed(figure(func(s sample) float64 { return s.peak }), 0),
	}
}

// guarantees lists, as Markdown, the texts that the last column of the table refers to.
func guarantees(works []*work) string {
	notes := noteNumbers(works)
	var out strings.Builder
	for i := range len(notes) {
		for text, n := range notes {
			if n == i+1 {
				fmt.Fprintf(&out, "%d. %s\n", n, text)
			}
		}
	}
	return out.String()
}

// noteNumbers numbers the guarantees in the order of the table.
func noteNumbers(works []*work) map[string]int {
	notes := map[string]int{}
	for _, w := range works {
		for _, r := range w.rows {
			if notes[r.guarantees] == 0 {
				notes[r.guarantees] = len(notes) + 1
			}
		}
	}
	return notes
}

// markdown formats a table whose first row is the header. The columns have the same width, for readers of the source.
func markdown(t [][]string) string {
	widths := make([]int, len(t[0]))
	for _, line := range t {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var out strings.Builder
	for n, line := range t {
		for i, cell := range line {
			fmt.Fprintf(&out, "| %s%s ", cell, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		out.WriteString("|\n")
		if n == 0 {
			for _, width := range widths {
				out.WriteString("| " + strings.Repeat("-", width) + " ")
			}
			out.WriteString("|\n")
		}
	}
	return out.String()
}

// spread returns the median and the extremes.
func spread(values []float64) string {
	if len(values) == 0 {
		return "–"
	}
	return fmt.Sprintf("**%s** [%s–%s]", short(median(values)), short(slices.Min(values)), short(slices.Max(values)))
}

// short prints a ratio with the digits that mean something.
func short(v float64) string {
	if v < 0.095 {
		return strconv.FormatFloat(v, 'g', 1, 64)
	}
	return fixed(v, 2)
}

func fixed(v float64, digits int) string {
	if math.IsNaN(v) {
		return "–"
	}
	return strconv.FormatFloat(v, 'f', digits, 64)
}

// milliseconds prints microseconds below one millisecond.
func milliseconds(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case v < 1:
		return fixed(v*1000, 0) + " µs"
	case v < 100:
		return fixed(v, 1) + " ms"
	}
	return fixed(v, 0) + " ms"
}

// thousands prints a whole number with commas.
func thousands(v float64) string {
	if math.IsNaN(v) {
		return "–"
	}
	digits := strconv.Itoa(int(math.Round(v)))
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
