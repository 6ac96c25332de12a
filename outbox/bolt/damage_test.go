package bolt_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/outbox/bolt"
)

// quickDir returns a folder in memory if possible, where a sync costs nothing.
func quickDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "outbox-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// made makes a closed file with entries of 20 keys, some dead and some removed, and returns its bytes.
func made(t *testing.T, path string) []byte {
	t.Helper()
	o := open(t, path, bolt.Config{})
	for i := range 120 {
		e := dispatcher.OutboxEntry{RoutingKey: fmt.Sprint("k", i%20), UUID: fmt.Sprint(i), Body: bytes.Repeat([]byte{byte(i)}, i*20), Headers: map[string]any{"n": int64(i)}}
		if err := o.Add(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		e, _, err := o.Oldest(t.Context(), fmt.Sprint("k", i))
		if err == nil && i%4 == 0 {
			e.Refused, e.RefusedAt = "no", time.Now()
			err = o.Bury(t.Context(), e)
		} else if err == nil {
			err = o.Remove(t.Context(), e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// dump returns the whole content of an outbox as text.
func dump(t *testing.T, o *bolt.Outbox) string {
	t.Helper()
	var all strings.Builder
	n, err := o.Counts(t.Context())
	fmt.Fprintln(&all, n, err)
	for i := range 20 {
		entries, err := o.Waiting(t.Context(), fmt.Sprint("k", i))
		fmt.Fprintln(&all, entries, err)
	}
	dead, err := o.Dead(t.Context())
	fmt.Fprintln(&all, dead, err)
	return all.String()
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedFileIsAClearErrorAndStaysAsItIs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(quickDir(t), "outbox.db")
	whole := made(t, path)
	page := os.Getpagesize()
	damage := map[string]func(b []byte) []byte{
		"empty":                  func([]byte) []byte { return nil },
		"one byte":               func(b []byte) []byte { return b[:1] },
		"one page":               func(b []byte) []byte { return b[:page] },
		"header pages only":      func(b []byte) []byte { return b[:2*page] },
		"half":                   func(b []byte) []byte { return b[:len(b)/2] },
		"three pages":            func(b []byte) []byte { return b[:3*page] },
		"first header":           func(b []byte) []byte { b[40] ^= 1; return b },
		"second header":          func(b []byte) []byte { b[page+60] ^= 1; return b },
		"no first header":        func(b []byte) []byte { clear(b[:page]); return b },
		"no second header":       func(b []byte) []byte { clear(b[page : 2*page]); return b },
		"no headers":             func(b []byte) []byte { clear(b[:2*page]); return b },
		"another file":           func([]byte) []byte { return []byte(strings.Repeat("it was a dark and stormy night\n", 1000)) },
		"zeros behind a header":  func(b []byte) []byte { clear(b[2*page:]); return b },
		"noise behind a header":  func(b []byte) []byte { noise(b[2*page:]); return b },
		"ones behind the header": func(b []byte) []byte { copy(b[2*page:], bytes.Repeat([]byte{255}, len(b))); return b },
		"shifted by a page":      func(b []byte) []byte { return append(append(b[:2*page:2*page], make([]byte, page)...), b[2*page:]...) },
	}
	for name, f := range damage {
		b := f(bytes.Clone(whole))
		write(t, path, b)
		began := time.Now()
		o, err := bolt.Open(path, bolt.Config{})
		if err == nil {
			o.Close()
		}
		if !errors.Is(err, bolt.ErrDamaged) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want ErrDamaged", name, err)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, b) {
			t.Errorf("%s: the file was written to", name)
		}
	}
	write(t, path, whole)
	if o, err := bolt.Open(path, bolt.Config{}); err != nil {
		t.Errorf("the file that Open refused is locked, or was never whole: %v", err)
	} else if err := o.Close(); err != nil {
		t.Error(err)
	}
}

func noise(b []byte) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
}

// A damaged byte is found, or it is in a place that has no meaning. An outbox that opens is whole, and stays whole in
// use.
func TestNoDamagedByteChangesAnEntryInSilence(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	path := filepath.Join(quickDir(t), "outbox.db")
	whole := made(t, path)
	o := open(t, path, bolt.Config{})
	want := dump(t, o)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	used := len(bytes.TrimRight(whole, "\x00"))
	const flips = 250
	found := 0
	for i := range flips {
		b := bytes.Clone(whole)
		at, bit := rng.IntN(used), byte(1)<<rng.IntN(8)
		if i%2 == 0 { // at the beginning of a page, where bbolt keeps its own data
			at = at/os.Getpagesize()*os.Getpagesize() + rng.IntN(64)
		}
		b[at%len(b)] ^= bit
		write(t, path, b)
		o, err := bolt.Open(path, bolt.Config{})
		if err != nil {
			found++
			if !errors.Is(err, bolt.ErrDamaged) && !strings.Contains(err.Error(), "does not know") && !strings.Contains(err.Error(), "knows only format") {
				t.Fatalf("byte %d, bit %d: %v", at, bit, err)
			}
			continue
		}
		if got := dump(t, o); got != want {
			t.Fatalf("byte %d, bit %d: got\n%s\nwant\n%s", at, bit, got, want)
		}
		if err := use(t, o); err != nil {
			t.Fatalf("byte %d, bit %d: %v", at, bit, err)
		}
		if got := dump(t, o); got != want {
			t.Fatalf("byte %d, bit %d: after some commits got\n%s\nwant\n%s", at, bit, got, want)
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of %d damaged bytes were found, the others had no meaning", found, flips)
	if found < flips/10 {
		t.Errorf("only %d of %d damaged bytes were found", found, flips)
	}
}

// use makes some commits. They would overwrite pages that are in use but counted as free.
func use(t *testing.T, o *bolt.Outbox) error {
	extra := dispatcher.OutboxEntry{RoutingKey: "extra", Body: make([]byte, 20_000)}
	for range 2 {
		if err := o.Add(t.Context(), extra); err != nil {
			return err
		}
		e, _, err := o.Oldest(t.Context(), "extra")
		if err == nil {
			err = o.Remove(t.Context(), e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Open finds a page that claims the free page behind it. bbolt does not check that.
func TestAPageThatClaimsAFreePageIsFound(t *testing.T) {
	t.Parallel()
	path := filepath.Join(quickDir(t), "outbox.db")
	o := open(t, path, bolt.Config{})
	for n := range 30 { // every second one leaves a gap
		e := dispatcher.OutboxEntry{RoutingKey: fmt.Sprint(n), Body: make([]byte, 20_000)}
		if err := o.Add(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	for n := 0; n < 30; n += 2 {
		e, _, err := o.Oldest(t.Context(), fmt.Sprint(n))
		if err == nil {
			err = o.Remove(t.Context(), e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var claims []int // used pages before a free one
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		for id, used := 2, -1; ; id++ {
			p, err := tx.Page(id)
			switch {
			case err != nil || p == nil:
				return err
			case p.Type == "free":
				if used >= 0 {
					claims = append(claims, used)
				}
				used = -1
			default:
				used = id
				id += p.OverflowCount
			}
		}
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if len(claims) == 0 {
		t.Fatal("no used page stands before a free one")
	}
	for _, id := range claims {
		b := bytes.Clone(whole)
		b[id*os.Getpagesize()+12]++ // the overflow count of the page
		write(t, path, b)
		o, err := bolt.Open(path, bolt.Config{})
		if !errors.Is(err, bolt.ErrDamaged) {
			t.Errorf("page %d of %v: %v", id, claims, err)
		}
		if err == nil {
			_ = o.Close()
		}
	}
}

// bbolt checks a file on a goroutine of its own. A fault in its memory map would end the process there.
func TestNoNumberInAPageEndsTheProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(quickDir(t), "outbox.db")
	whole := made(t, path)
	page, found := os.Getpagesize(), 0
	for start := 2 * page; start+page <= len(whole); start += page {
		for _, c := range []struct {
			at int // in the page: its flags and count, its overflow, and the numbers of the first elements
			to []byte
		}{
			{8, []byte{1, 0}}, {8, []byte{2, 0}}, {8, []byte{16, 0}}, {10, []byte{0xff, 0xff}}, {10, []byte{0xfe, 0xff}}, {10, []byte{0, 2}},
			{12, []byte{0xff, 0xff, 0xff, 0xff}}, {12, []byte{1}}, {16, []byte{1}}, {16, bytes.Repeat([]byte{0xff}, 4)}, {20, bytes.Repeat([]byte{0xff}, 4)},
			{24, bytes.Repeat([]byte{0xff}, 8)}, {24, []byte{0, 0, 0, 0, 0, 0xff, 0x7f}}, {32, []byte{1}}, {36, bytes.Repeat([]byte{0xff}, 4)}, {40, bytes.Repeat([]byte{0xff}, 8)},
		} {
			b := bytes.Clone(whole)
			copy(b[start+c.at:], c.to)
			write(t, path, b)
			o, err := bolt.Open(path, bolt.Config{})
			if err == nil { // the page is not in use
				if err := o.Close(); err != nil {
					t.Fatal(err)
				}
			} else if !errors.Is(err, bolt.ErrDamaged) {
				t.Fatalf("%v at %d of page %d: %v", c.to, c.at, start/page, err)
			} else {
				found++
			}
		}
	}
	if found == 0 {
		t.Error("no damage was found")
	}
}

// A disk that loses pages while the file is open must not end the process.
func TestDamageWhileTheFileIsOpenIsAnError(t *testing.T) {
	t.Parallel()
	path := filepath.Join(quickDir(t), "outbox.db")
	made(t, path)
	o := open(t, path, bolt.Config{})
	if err := os.Truncate(path, int64(2*os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	if _, _, err := o.Oldest(t.Context(), "k1"); !errors.Is(err, bolt.ErrDamaged) {
		t.Errorf("Oldest: %v", err)
	}
	for range 2 {
		if err := o.Add(t.Context(), dispatcher.OutboxEntry{RoutingKey: "k"}); err == nil {
			t.Error("Add: no error")
		}
	}
	if _, err := o.Counts(t.Context()); !errors.Is(err, bolt.ErrDamaged) {
		t.Errorf("Counts: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- o.Close() }()
	select {
	case err := <-ended:
		t.Logf("Close: %v", err)
	case <-time.After(30 * time.Second):
		t.Error("Close does not return")
	}
}
