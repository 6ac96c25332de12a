package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"unicode/utf8"

	"github.com/seed-416683c9/dispatcher/internal/text"
)

// This file takes apart JSON text that json.Valid has accepted. No function here recurses, copies values or reads
// beyond its input. Text that is not valid gives wrong parts, never a panic.

// splitObject returns the values of up to three members of an object, nil for an absent one. Any key that occurs twice
// is an error.
func splitObject(raw []byte, a, b, c string) (values [3]json.RawMessage, err error) {
	var others map[string]struct{}
	for quoted, value := range members(raw) {
		key, _ := unquoteBytes(quoted)
		i := -1
		switch string(key) {
		case a:
			i = 0
		case b:
			i = 1
		case c:
			if c != "" {
				i = 2
			}
		}
		if i < 0 {
			if _, twice := others[string(key)]; twice {
				return values, fmt.Errorf("duplicate key %q", text.Excerpt(key))
			}
			if others == nil {
				others = make(map[string]struct{})
			}
			others[string(key)] = struct{}{}
			continue
		}
		if values[i] != nil {
			return values, fmt.Errorf("duplicate key %q", text.Excerpt(key))
		}
		values[i] = value
	}
	return values, nil
}

// stringField reads a required member that is a string. If raw is nil, the member is absent. If one of known is equal,
// it is returned instead of a copy.
func stringField(name string, raw []byte, known ...string) (string, error) {
	if raw == nil {
		return "", fmt.Errorf("%s is missing", name)
	}
	b, ok := unquoteBytes(raw)
	if !ok {
		return "", fmt.Errorf("%s: want a string, got %s", name, jsonKind(raw))
	}
	return choose(b, known), nil
}

// choose returns the text of b: one of known, if it is equal, or a copy.
func choose(b []byte, known []string) string {
	for _, s := range known {
		if string(b) == s {
			return s
		}
	}
	return string(b)
}

// members yields the quoted key and the value of each member of an object.
func members(raw []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		for i := skipSpace(raw, 1); i < len(raw) && raw[i] == '"'; {
			end := skipString(raw, i)
			key := raw[i:end:end]
			i = skipSpace(raw, end)
			i = skipSpace(raw, i+1) // the colon
			if i >= len(raw) {
				return
			}
			end = skipValue(raw, i)
			if end == i || !yield(key, raw[i:end:end]) {
				return
			}
			i = skipSpace(raw, end)
			i = skipSpace(raw, i+1) // the comma
		}
	}
}

// elements yields each value of an array.
func elements(raw []byte) iter.Seq[[]byte] {
	return func(yield func(value []byte) bool) {
		for i := skipSpace(raw, 1); i < len(raw) && raw[i] != ']'; {
			end := skipValue(raw, i)
			if end == i || !yield(raw[i:end:end]) {
				return
			}
			i = skipSpace(raw, end)
			i = skipSpace(raw, i+1) // the comma
		}
	}
}

// skipValue returns the end of the value that starts at i.
func skipValue(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			i = skipString(b, i)
			if depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return len(b)
}

// skipString returns the end of the string whose opening quote is at i.
func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(b)
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// trimSpace removes the space that JSON allows around a value.
func trimSpace(b []byte) []byte { return bytes.Trim(b, " \t\r\n") }

// unquote returns the text of a JSON string. It returns false if raw is not a string.
func unquote(raw []byte) (string, bool) {
	b, ok := unquoteBytes(raw)
	return string(b), ok
}

func unquoteBytes(raw []byte) ([]byte, bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return nil, false
	}
	if inner := raw[1 : len(raw)-1]; bytes.IndexByte(inner, '\\') < 0 {
		return inner, true
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return nil, false
	}
	return []byte(s), true
}

func jsonKind(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a bool"
	case 'n':
		return "null"
	}
	return "a number"
}

// badText returns the position of the first text that is not Unicode, or -1 if there is none. It finds bytes that are
// not UTF-8, and escaped halves of surrogate pairs. encoding/json would replace them with U+FFFD.
func badText(raw []byte) int {
	if !utf8.Valid(raw) {
		for i := 0; i < len(raw); {
			r, size := utf8.DecodeRune(raw[i:])
			if r == utf8.RuneError && size == 1 {
				return i
			}
			i += size
		}
	}
	if !bytes.Contains(raw, []byte(`\u`)) {
		return -1
	}
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		switch unit := escapedUnit(raw[i:]); {
		case unit >= 0xD800 && unit < 0xDC00 && len(raw) >= i+6:
			if low := escapedUnit(raw[i+6:]); low < 0xDC00 || low > 0xDFFF {
				return i
			}
			i += 11
		case unit >= 0xDC00 && unit <= 0xDFFF:
			return i
		default:
			i++ // the escaped character, which may be a backslash
		}
	}
	return -1
}

// escapedUnit reads the \uXXXX at the start of b. It returns -1 if b starts with something else.
func escapedUnit(b []byte) int {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	unit := 0
	for _, c := range b[2:6] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return -1
		}
		unit = unit<<4 | int(c)
	}
	return unit
}

// tooDeep reports whether a value, inside a task, is nested deeper than encoding/json reads.
func tooDeep(raw []byte) bool {
	if bytes.Count(raw, []byte("["))+bytes.Count(raw, []byte("{")) < 9_990 {
		return false
	}
	wrapped := make([]byte, 0, len(raw)+6)
	wrapped = append(append(append(wrapped, "[[["...), raw...), "]]]"...)
	return !json.Valid(wrapped)
}
