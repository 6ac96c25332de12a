package contain

import (
	"bytes"
	"log/slog"
	"runtime"
	"strings"
	"testing"
)

// The value of a panic may be a secret.
func TestAPanicOfAHookIsLoggedWithoutItsValue(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(*slog.Logger, func(string), string){"Call": Call[string], "CallApart": CallApart[string]} {
		var out bytes.Buffer
		got := ""
		call(slog.New(slog.NewTextHandler(&out, nil)), func(e string) { got = e; panic("secret") }, "event")
		line := out.String()
		if got != "event" || strings.Count(line, "\n") != 1 || !strings.Contains(line, `msg="hook panicked" panic=string stack=`) || strings.Contains(line, "secret") {
			t.Errorf("%s with %q: %s", name, got, line)
		}
	}
}

func TestCallApartOutlivesGoexit(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	called := false
	CallApart(slog.New(slog.NewTextHandler(&out, nil)), func(int) { called = true; runtime.Goexit() }, 1)
	if !called || out.Len() > 0 {
		t.Errorf("called: %v, log: %s", called, out.String())
	}
}
