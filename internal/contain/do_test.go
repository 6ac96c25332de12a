package contain

import (
	"bytes"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"testing"
)

// selfish is an error whose methods panic.
type selfish struct{}

func (selfish) Error() string { panic("text") }

func TestDoContainsWhatTheUsersCodeDoes(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	no := errors.New("no")
	for name, c := range map[string]struct {
		f    func() (int, error)
		v    int
		want string
	}{
		"returns":         {func() (int, error) { return 7, nil }, 7, ""},
		"fails":           {func() (int, error) { return 7, no }, 7, "no"},
		"panics":          {func() (int, error) { panic("boom") }, 0, "the box panicked: boom"},
		"ends":            {func() (int, error) { runtime.Goexit(); return 7, nil }, 0, "the box called runtime.Goexit"},
		"a selfish error": {func() (int, error) { return 7, selfish{} }, 0, "the box panicked: text"},
	} {
		v, err := Do(log, "box", c.f)
		said := ""
		if err != nil {
			said = err.Error()
		}
		if v != c.v || said != c.want {
			t.Errorf("%s: %d, %q", name, v, said)
		}
	}
	if n := strings.Count(out.String(), "box panicked"); n < 2 || !strings.Contains(out.String(), "do_test.go") {
		t.Errorf("log %s", out.String())
	}
}
