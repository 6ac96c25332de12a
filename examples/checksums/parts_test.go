package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

func TestPathsSurviveTheWire(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"a", "\xff", "é", "dir\n/\xff", "00", "\ufffd"} {
		encoded := encodePath(path)
		decoded, err := decodePath(encoded)
		if err != nil || decoded != path || strings.ToValidUTF8(encoded, "") != encoded {
			t.Errorf("%q became %q became %q: %v", path, encoded, decoded, err)
		}
	}
	if _, err := decodePath("\x00zz"); err == nil {
		t.Error("no error for invalid digits")
	}
}

func TestHashingEndsWithItsContext(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	f := hugeFile(t, folder)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(dispatcher.ErrShutdown)
	if _, err := hashFile(ctx, openRoot(t, folder), f.path, f.size); err != dispatcher.ErrShutdown {
		t.Errorf("got %v", err)
	}
}

func TestSecondReportIsIgnored(t *testing.T) {
	t.Parallel()
	r := newResults()
	check(t, r.expect(t.Context(), nil, "a"))
	if !r.settle("a", digest{}, 1, nil) || r.settle("a", digest{}, 1, errors.New("late")) || r.settle("never expected", digest{}, 1, nil) {
		t.Error("the task was not settled exactly once")
	}
	check(t, r.wait(t.Context(), nil))
	if got, want := r.counts(), (counts{tasks: 1, done: 1, bytes: 1, all: true}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestOpenTasksAreBounded(t *testing.T) {
	t.Parallel()
	r := newResults()
	for i := range maxOpen {
		check(t, r.expect(t.Context(), nil, string(rune('a'+i))))
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.expect(ended, nil, "one more"); !errors.Is(err, context.Canceled) {
		t.Errorf("expect while the results are full: %v", err)
	}
	lost := make(chan struct{})
	close(lost)
	if err := r.wait(t.Context(), lost); err == nil {
		t.Error("no error although the connection is lost")
	}
	r.settle("a", digest{}, 0, nil)
	check(t, r.expect(t.Context(), nil, "one more"))
}

func TestBarFitsItsWidth(t *testing.T) {
	t.Parallel()
	c := counts{tasks: 1000, done: 250, failures: 3, bytes: 12_345_678}
	for width, want := range map[int]string{
		80: "250/1000+ files 12.3 MB 3 failed [#######-----------------------]",
		40: "250/1000+ files 12.3 MB 3 failed [#----]",
		33: "250/1000+ files 12.3 MB 3 failed",
		10: "250/1000+ ",
		0:  "",
	} {
		if got := bar(c, width); got != want {
			t.Errorf("width %d: got %q, want %q", width, got, want)
		}
	}
	if got, want := bar(counts{all: true}, 30), "0/0 files 0.0 MB [-----------]"; got != want {
		t.Errorf("no files: got %q, want %q", got, want)
	}
}

func TestProgressOnATerminalAndInAFile(t *testing.T) {
	t.Parallel()
	for terminal, want := range map[bool]string{
		true:  "\r1/2 files 0.0 MB" + "\r" + strings.Repeat(" ", 16) + "\r" + "message\n" + "\r1/2 files 0.0 MB" + "\r" + strings.Repeat(" ", 16) + "\r",
		false: "message\n",
	} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			p := newProgress(&out, func() counts { return counts{tasks: 2, done: 1, all: true} })
			p.terminal, p.width = terminal, 16
			go p.run()
			<-time.After(150 * time.Millisecond)
			p.print("message")
			<-time.After(100 * time.Millisecond)
			p.end()
			p.print("too late")
			if got := out.String(); got != want {
				t.Errorf("terminal %t: got %q, want %q", terminal, got, want)
			}
		})
	}
}
