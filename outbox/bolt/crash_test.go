package bolt_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/outbox/bolt"
)

// childVariable is the environment variable that tells a child process of this test binary which part to play.
const childVariable = "BOLT_TEST_CHILD"

// children are the parts, by name. arg is the second half of the variable.
var children = map[string]func(arg string) error{"load": loadChild}

func TestMain(m *testing.M) {
	if name, arg, is := strings.Cut(os.Getenv(childVariable), ":"); is {
		if err := children[name](arg); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	verifyMain(m)
}

// child starts a process of this binary that plays a part and prints lines.
func child(tb testing.TB, part, arg string) (*exec.Cmd, *bufio.Scanner) {
	tb.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+part+":"+arg)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, bufio.NewScanner(out)
}

// The load has publishers that add to keys of their own. For each key, one goroutine removes the oldest entry, as a
// server does.
const loadKeys = 6

// say prints a line with one write, so that the parent reads it whole or not at all, even if this process is killed.
func say(format string, args ...any) {
	_, _ = io.WriteString(os.Stdout, fmt.Sprintf(format+"\n", args...))
}

// loadChild prints "added" after an Add has returned nil, "sending" before a Remove or Bury, and "removed" or "buried"
// after it.
func loadChild(arg string) error {
	path, first, _ := strings.Cut(arg, "|")
	from, err := strconv.Atoi(first)
	if err != nil {
		return err
	}
	o, err := bolt.Open(path, bolt.Config{})
	if err != nil {
		return err
	}
	say("open")
	ctx := context.Background()
	var wg sync.WaitGroup
	for k := range loadKeys {
		key := fmt.Sprint("k", k)
		wg.Go(func() {
			for n := from; ; n++ {
				e := dispatcher.OutboxEntry{RoutingKey: key, UUID: fmt.Sprint(n), Body: make([]byte, rand.IntN(3000))}
				if err := o.Add(ctx, e); err != nil {
					say("error %v", err)
					return
				}
				say("added %s %d", key, n)
			}
		})
		wg.Go(func() {
			for n := 0; ; n++ {
				e, found, err := o.Oldest(ctx, key)
				switch {
				case err != nil:
					say("error %v", err)
					return
				case !found || n%3 == 2: // sometimes it falls behind
					continue
				}
				say("sending %s %s", key, e.UUID)
				did, call := "removed", o.Remove
				if n%10 == 0 {
					did, call, e.Refused, e.RefusedAt = "buried", o.Bury, "no", time.Now()
				}
				if err := call(ctx, e); err != nil {
					say("error %v", err)
					return
				}
				say("%s %s %s", did, key, e.UUID)
			}
		})
	}
	wg.Wait()
	return errors.New("the load has ended")
}

// ledger holds what the parent knows about the entries of one key, by number.
type ledger struct {
	state map[int]string // the last line about each entry
	next  int            // larger than all numbers that may be in use
}

func TestKillAtAnyMomentLosesNothingThatWasAccepted(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	path := filepath.Join(t.TempDir(), "outbox.db")
	books := map[string]*ledger{}
	for k := range loadKeys {
		books[fmt.Sprint("k", k)] = &ledger{state: map[int]string{}}
	}
	rounds, accepted, left := 50, 0, 0
	for round := range rounds {
		from := 0
		for _, b := range books {
			from = max(from, b.next)
		}
		cmd, lines := child(t, "load", fmt.Sprintf("%s|%d", path, from))
		// Some kills come after the file is open, others while it is being opened or made.
		wait := time.Duration(rng.IntN(300)) * time.Millisecond
		if round%5 == 0 {
			time.AfterFunc(wait/2, func() { _ = cmd.Process.Kill() })
		}
		for lines.Scan() {
			word := strings.Fields(lines.Text())
			switch word[0] {
			case "open":
				time.AfterFunc(wait, func() { _ = cmd.Process.Kill() })
				continue
			case "error":
				t.Fatalf("round %d: %s", round, lines.Text())
			}
			n, err := strconv.Atoi(word[2])
			if err != nil {
				t.Fatal(err)
			}
			b := books[word[1]]
			if word[0] != "added" || b.state[n] == "" { // "sending" may be printed before "added"
				b.state[n] = word[0]
			}
			if word[0] == "added" {
				accepted++
			}
			b.next = max(b.next, n+1)
		}
		_ = cmd.Wait() // killed
		left = audit(t, round, path, books)
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("killed %d times, %d entries accepted, %d left", rounds, accepted, left)
	if accepted < 100 {
		t.Errorf("%d accepted entries are no load", accepted)
	}
}

// audit compares the file with the books, and adds entries that the parent has not seen.
func audit(t *testing.T, round int, path string, books map[string]*ledger) (left int) {
	o, err := bolt.Open(path, bolt.Config{})
	if err != nil {
		t.Fatalf("round %d: %v", round, err)
	}
	defer o.Close()
	waiting, dead := map[string][]int{}, map[string]map[int]bool{}
	number := func(e dispatcher.OutboxEntry) int {
		n, err := strconv.Atoi(e.UUID)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for key := range books {
		waiting[key], dead[key] = entries(t, o, key), map[int]bool{}
	}
	buried, err := o.Dead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range buried {
		dead[e.RoutingKey][number(e)] = true
	}
	for key, b := range books {
		here := map[int]bool{}
		unseen := 0
		for i, n := range waiting[key] {
			here[n] = true
			if i > 0 && n <= waiting[key][i-1] {
				t.Errorf("round %d: key %s: %d comes after %d", round, key, n, waiting[key][i-1])
			}
			if b.state[n] == "" { // kept, but the process ended before it could say so
				unseen++
				b.state[n], b.next = "added", max(b.next, n+1)
			}
		}
		if unseen > 1 {
			t.Errorf("round %d: key %s: %d entries of one publisher were kept and not accepted", round, key, unseen)
		}
		for n, state := range b.state {
			switch {
			case state == "added" && !here[n]:
				t.Errorf("round %d: key %s: %d was accepted and is lost", round, key, n)
			case state == "removed" && (here[n] || dead[key][n]):
				t.Errorf("round %d: key %s: %d was removed and is back", round, key, n)
			case state == "buried" && (here[n] || !dead[key][n]):
				t.Errorf("round %d: key %s: %d was buried; it waits: %t, dead: %t", round, key, n, here[n], dead[key][n])
			case state == "sending" && here[n]: // the entry is as it was
				b.state[n] = "added"
			case state == "sending" && dead[key][n]:
				b.state[n] = "buried"
			case state == "sending":
				b.state[n] = "removed"
			}
		}
		left += len(here)
	}
	return left
}

// entries lists the numbers of a key's entries, oldest first, without removing one.
func entries(t *testing.T, o *bolt.Outbox, key string) (numbers []int) {
	t.Helper()
	all, err := o.Waiting(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		n, err := strconv.Atoi(e.UUID)
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, n)
	}
	return numbers
}
