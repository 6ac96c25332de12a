package wire

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// maxFastDepth bounds the nesting that endOfValue follows.
const maxFastDepth = 64

// wellFormed reports whether b is one valid JSON value and all of its text is Unicode, in one pass. It stands for
// json.Valid and badText, which take several times as long. It returns false for a value that is nested deeper than
// maxFastDepth: its callers then ask those two, which also know what is wrong.
func wellFormed(b []byte) bool {
	end := endOfValue(b, skipSpace(b, 0))
	return end >= 0 && skipSpace(b, end) == len(b)
}

// endOfValue returns the end of the JSON value at i, or -1 if it is not valid, has text that is not Unicode, or is
// nested deeper than maxFastDepth.
func endOfValue(b []byte, i int) int {
	var object [maxFastDepth]bool // of the containers around i, whether each is an object
	for depth := 0; i < len(b); {
		opened := false
		switch c := b[i]; {
		case c == '"':
			i = endOfString(b, i)
		case c == '{' || c == '[':
			if depth == maxFastDepth {
				return -1
			}
			object[depth] = c == '{'
			depth++
			i, opened = i+1, true
		case c == '-' || '0' <= c && c <= '9':
			i = endOfNumber(b, i)
		case c == 't':
			i = endOfWord(b, i, "true")
		case c == 'f':
			i = endOfWord(b, i, "false")
		case c == 'n':
			i = endOfWord(b, i, "null")
		default:
			return -1
		}
		if i < 0 || depth == 0 {
			return i
		}
		// The value has ended, or is a container whose first member or end follows. Close what ends here.
		for i = skipSpace(b, i); i < len(b); i = skipSpace(b, i) {
			if object[depth-1] && b[i] != '}' || !object[depth-1] && b[i] != ']' {
				break
			}
			i++
			opened = false
			if depth--; depth == 0 {
				return i
			}
		}
		// Another member begins.
		if !opened {
			if i >= len(b) || b[i] != ',' {
				return -1
			}
			i = skipSpace(b, i+1)
		}
		if object[depth-1] {
			if i >= len(b) || b[i] != '"' {
				return -1
			}
			if i = endOfString(b, i); i < 0 {
				return -1
			}
			if i = skipSpace(b, i); i >= len(b) || b[i] != ':' {
				return -1
			}
			i = skipSpace(b, i+1)
		}
	}
	return -1
}

// endOfString returns the end of the string whose opening quote is at i, or -1.
func endOfString(b []byte, i int) int {
	for i = endOfPlain(b, i+1); i < len(b); i = endOfPlain(b, i) {
		switch c := b[i]; {
		case c == '"':
			return i + 1
		case c == '\\':
			if i = endOfEscape(b, i); i < 0 {
				return -1
			}
		case c < ' ':
			return -1
		default:
			r, size := utf8.DecodeRune(b[i:])
			if r == utf8.RuneError && size == 1 {
				return -1
			}
			i += size
		}
	}
	return -1
}

// endOfPlain returns the end of the text at i that is ASCII without quotes, backslashes and control characters. It reads
// eight bytes at a time, since most of a body is such text.
func endOfPlain(b []byte, i int) int {
	for ; i+8 <= len(b); i += 8 {
		if special := specialBytes(binary.LittleEndian.Uint64(b[i:])); special != 0 {
			return i + bits.TrailingZeros64(special)/8
		}
	}
	for i < len(b) && b[i] >= ' ' && b[i] < utf8.RuneSelf && b[i] != '"' && b[i] != '\\' {
		i++
	}
	return i
}

// specialBytes sets the highest bit of the first of eight bytes that is not plain, and perhaps bits above it. A
// subtraction of bytes below 128 sets that bit where it is below 0, and the xor of equal bytes is 0.
func specialBytes(x uint64) uint64 {
	const each = 0x0101010101010101
	control, quote, backslash := x-' '*each, (x^'"'*each)-each, (x^'\\'*each)-each
	return (x | control | quote | backslash) & (0x80 * each)
}

// endOfEscape returns the end of the escape at i, or of the two that are a surrogate pair. It returns -1 for others.
func endOfEscape(b []byte, i int) int {
	if i+1 >= len(b) {
		return -1
	}
	switch b[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	}
	unit := escapedUnit(b[i:])
	switch {
	case unit < 0 || 0xDC00 <= unit && unit <= 0xDFFF:
		return -1
	case unit < 0xD800 || unit > 0xDFFF:
		return i + 6
	}
	if low := escapedUnit(b[i+6:]); low < 0xDC00 || low > 0xDFFF {
		return -1
	}
	return i + 12
}

// endOfNumber returns the end of the number at i, or -1.
func endOfNumber(b []byte, i int) int {
	if b[i] == '-' {
		i++
	}
	switch {
	case i >= len(b):
		return -1
	case b[i] == '0':
		i++
	default:
		if i = endOfDigits(b, i); i < 0 {
			return -1
		}
	}
	if i < len(b) && b[i] == '.' {
		if i = endOfDigits(b, i+1); i < 0 {
			return -1
		}
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		if i++; i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		return endOfDigits(b, i)
	}
	return i
}

// endOfDigits returns the end of one or more digits at i, or -1.
func endOfDigits(b []byte, i int) int {
	start := i
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	if i == start {
		return -1
	}
	return i
}

func endOfWord(b []byte, i int, word string) int {
	if len(b)-i < len(word) || string(b[i:i+len(word)]) != word {
		return -1
	}
	return i + len(word)
}
