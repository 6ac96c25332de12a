package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// progress shows the progress of the job. Only its goroutine writes to w, so that bar and messages do not mix.
type progress struct {
	w        io.Writer
	terminal bool
	width    int // the longest line
	counts   func() counts
	messages chan string
	stop     chan struct{}
	stopped  chan struct{}
}

// newProgress returns a display. The caller starts run in a goroutine and stops it with end.
func newProgress(w io.Writer, counts func() counts) *progress {
	return &progress{
		w: w, terminal: isTerminal(w), width: lineWidth(), counts: counts,
		messages: make(chan string), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
}

// isTerminal reports whether w is a character device. /dev/null is one too, where a bar does no harm. Other such
// devices make no sense as standard error. A real check for a terminal needs a system-specific call.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// print writes a line above the bar. After end it does nothing.
func (p *progress) print(line string) {
	select {
	case p.messages <- line:
	case <-p.stopped:
	}
}

// end removes the bar and stops run.
func (p *progress) end() {
	close(p.stop)
	<-p.stopped
}

func (p *progress) run() {
	defer close(p.stopped)
	pause, begin, end := time.Second, "", "\n" // for a file or a pipe: one line per second
	if p.terminal {
		pause, begin, end = 100*time.Millisecond, "\r", ""
	}
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	drawn := 0
	erase := func() {
		if p.terminal && drawn > 0 {
			fmt.Fprintf(p.w, "\r%*s\r", drawn, "")
			drawn = 0
		}
	}
	defer erase()
	for {
		select {
		case line := <-p.messages:
			erase()
			fmt.Fprintln(p.w, line)
		case <-ticker.C:
			line := bar(p.counts(), p.width)
			fmt.Fprintf(p.w, "%s%-*s%s", begin, drawn, line, end)
			if p.terminal {
				drawn = len(line)
			}
		case <-p.stop:
			return
		}
	}
}

// lineWidth returns the maximum length of a line: from COLUMNS, if the shell exports it, or one that fits nearly every
// terminal.
func lineWidth() int {
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		return n - 1 // a terminal may wrap when its last column is written
	}
	return 60
}

// bar returns the counts and, if there is room, a bar. The text is never longer than width. While the walk goes on, it
// counts the files found so far and adds a plus to their number.
func bar(c counts, width int) string {
	more := "+"
	if c.all {
		more = ""
	}
	text := fmt.Sprintf("%d/%d%s files %.1f MB", c.done, c.tasks, more, float64(c.bytes)/1e6)
	if c.failures > 0 {
		text += fmt.Sprintf(" %d failed", c.failures)
	}
	if room := min(width-len(text)-len(" []"), 30); room >= 5 {
		full := room * c.done / max(c.tasks, 1)
		text += " [" + strings.Repeat("#", full) + strings.Repeat("-", room-full) + "]"
	}
	return text[:min(len(text), width)]
}
