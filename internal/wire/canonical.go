package wire

import "bytes"

// This file reads bodies in one pass if they have the form that encode.go and encoding/json write: no space, the keys in
// their order and no others, names without escapes. Any other body is left to Decode.

// scanner reads a body from its start. After the first mismatch it reads nothing more.
type scanner struct {
	rest []byte
	bad  bool
}

// canonical reads a body of this form. It returns false for any other body, valid or not.
func canonical(args []Value, body []byte, known []string) (t Task, ok bool) {
	s := scanner{rest: body}
	s.expect(`{"uuid":`)
	t.UUID = choose(s.text(), known)
	s.expect(`,"name":`)
	t.Name = choose(s.text(), known)
	s.expect(`,"args":`)
	if !s.take("null") {
		s.expect("[")
		for first := true; !s.bad && !s.take("]"); first = false {
			if !first {
				s.expect(",")
			}
			s.expect(`{"type":`)
			name := s.text()
			s.expect(`,"value":`)
			value := s.value()
			s.expect("}")
			if t.Args == nil {
				t.Args = room(args)
			}
			t.Args = append(t.Args, Value{typeName(name), value})
		}
	}
	s.expect("}")
	if s.bad || len(s.rest) > 0 || t.Name == "" {
		return Task{}, false
	}
	return t, true
}

// take reads a text if it is next.
func (s *scanner) take(text string) bool {
	if s.bad || len(s.rest) < len(text) || string(s.rest[:len(text)]) != text {
		return false
	}
	s.rest = s.rest[len(text):]
	return true
}

// expect reads a text, which must be next.
func (s *scanner) expect(text string) {
	if !s.take(text) {
		s.bad = true
	}
}

// value reads a valid value.
func (s *scanner) value() []byte {
	if s.bad {
		return nil
	}
	end := endOfValue(s.rest, 0)
	if end < 0 {
		s.bad = true
		return nil
	}
	v := s.rest[:end:end]
	s.rest = s.rest[end:]
	return v
}

// text reads a string without escapes.
func (s *scanner) text() []byte {
	if s.bad || len(s.rest) == 0 || s.rest[0] != '"' {
		s.bad = true
		return nil
	}
	end := endOfString(s.rest, 0)
	if end < 0 || bytes.IndexByte(s.rest[:end], '\\') >= 0 {
		s.bad = true
		return nil
	}
	v := s.rest[1 : end-1]
	s.rest = s.rest[end:]
	return v
}
