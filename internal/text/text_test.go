package text

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

// worse is an error, and the value of its own panic.
type worse struct{}

func (worse) Error() string  { panic(worse{}) }
func (worse) String() string { panic(worse{}) }

// bad is an error whose text panics with an ordinary value, which fmt contains.
type bad struct{}

func (bad) Error() string { panic("boom") }

func TestTheTextOfAnErrorIsBoundedAndValid(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"ok":                            nil,
		"no":                            errors.New("no"),
		"two\nlines":                    errors.New("two\nlines"),
		"a\uFFFDb":                      errors.New("a\xffb"),
		"%!v(PANIC=Error method: boom)": bad{},
		"error of type text.worse whose Error method panicked": worse{},
		strings.Repeat("x", maxError):                          errors.New(strings.Repeat("x", maxError)),
		strings.Repeat("x", maxError) + "…":                    errors.New(strings.Repeat("x", maxError+1)),
		strings.Repeat("x", maxError-1) + "…":                  errors.New(strings.Repeat("x", maxError-1) + "é"),
		strings.Repeat("x", maxError-3) + "…":                  errors.New(strings.Repeat("x", maxError-3) + "🙂"),
	} {
		if got := OfError(err); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

func TestTextsFromOutsideAreCutToOneLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   string
		most int
		want string
	}{
		{"", 5, ""},
		{"12345", 5, "12345"},
		{"123456", 5, "12345…"},
		{"a\nb\tc", 9, "a b c"},
		{"\x1b[31m\x00\x7f", 9, " [31m  "},
		{"abcdé", 5, "abcd…"},
		{"abc🙂", 5, "abc…"},
		{"ab🙂", 5, "ab…"},
		{"a🙂", 5, "a🙂"},
		{"é\u2028", 9, "é\u2028"},
		{"ab\xffcd", 9, "ab\uFFFDcd"},
		{"ab\xffcde", 5, "ab\uFFFDcd…"}, // invalid before the cut
	} {
		if got := Cut(c.in, c.most); got != c.want {
			t.Errorf("Cut(%q, %d) = %q, want %q", c.in, c.most, got, c.want)
		}
		if got := Cut([]byte(c.in), c.most); got != c.want {
			t.Errorf("Cut of the bytes %q, %d: %q, want %q", c.in, c.most, got, c.want)
		}
	}
}

func TestEachCutHasItsBound(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é\n", 10_000)
	for name, c := range map[string]struct {
		got  string
		most int
	}{
		"OneLine": {OneLine(long), maxError + len("…") + len("…")},
		"Excerpt": {Excerpt(long), 64 + len("…")},
		"Reason":  {Reason(errors.New(long)), 160 + len("…")},
	} {
		if len(c.got) > c.most || len(c.got) < c.most-3 || !utf8.ValidString(c.got) || strings.Contains(c.got, "\n") || !strings.HasSuffix(c.got, "…") {
			t.Errorf("%s: %d bytes, at most %d: %q", name, len(c.got), c.most, c.got)
		}
	}
	// OneLine must not cut the text of an error again.
	cut := OfError(errors.New(strings.Repeat("x", 2*maxError)))
	if got := OneLine(cut); got != cut {
		t.Errorf("%d bytes became %d", len(cut), len(got))
	}
}
