package wire

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/seed-416683c9/dispatcher/internal/fault"
)

// Task is a decoded body. Its values are parts of the body, not copies.
type Task struct {
	UUID, Name string
	Args       []Value
}

// Value is one argument as it was received: a type name that may be unknown, and the text of one valid JSON value.
type Value struct {
	Type  string
	Value json.RawMessage
}

// Decode reads a body. Every error Is fault.ErrMalformed.
//
// It is stricter than json.Unmarshal, which takes the last of two equal keys and "NAME" for "name", and replaces text
// that is not Unicode. Two readers of one body must not see two tasks. Decode ignores unknown keys, since a newer
// sender may write them. uuid may be absent or "", args absent or null.
func Decode(body []byte) (Task, error) { return DecodeInto(nil, body) }

// DecodeInto is Decode that allocates less: args has room for the arguments, if they fit, and known are texts that the
// uuid and the name are probably equal to, and which are used instead of copies.
func DecodeInto(args []Value, body []byte, known ...string) (Task, error) {
	if len(body) == 0 {
		return Task{}, malformed("the body is empty")
	}
	if t, ok := canonical(args, body, known); ok {
		return t, nil
	}
	if !wellFormed(body) {
		if !json.Valid(body) { // also when it is nested deeper than 10,000
			return Task{}, notJSON(body)
		}
		if at := badText(body); at >= 0 {
			return Task{}, malformed("text that is not Unicode at byte %d", at)
		}
	}
	body = trimSpace(body)
	if body[0] != '{' {
		return Task{}, malformed("want an object, got %s", jsonKind(body))
	}
	f, err := splitObject(body, "uuid", "name", "args")
	if err != nil {
		return Task{}, malformed("%v", err)
	}
	var t Task
	if f[0] != nil {
		if t.UUID, err = stringField("uuid", f[0], known...); err != nil {
			return Task{}, malformed("%v", err)
		}
	}
	if t.Name, err = stringField("name", f[1], known...); err != nil {
		return Task{}, malformed("%v", err)
	}
	if t.Name == "" {
		return Task{}, malformed("name is empty")
	}
	if f[2] == nil || f[2][0] == 'n' {
		return t, nil
	}
	if f[2][0] != '[' {
		return Task{}, malformed("args: want an array, got %s", jsonKind(f[2]))
	}
	for value := range elements(f[2]) {
		arg, err := DecodeArgument(value)
		if err != nil {
			return Task{}, malformed("argument %d: %v", len(t.Args), err)
		}
		if t.Args == nil {
			t.Args = room(args)
		}
		t.Args = append(t.Args, arg)
	}
	return t, nil
}

// room returns an empty slice with the room of args.
func room(args []Value) []Value {
	if cap(args) > 0 {
		return args[:0]
	}
	return make([]Value, 0, 4)
}

// DecodeArgument reads one element of args.
func DecodeArgument(raw []byte) (Value, error) {
	if raw[0] != '{' {
		return Value{}, fmt.Errorf("want an object, got %s", jsonKind(raw))
	}
	f, err := splitObject(raw, "type", "value", "")
	if err != nil {
		return Value{}, err
	}
	inner, _ := unquoteBytes(f[0])
	name := scalarNames[parseScalarName(string(inner))] // "" also for the other types; see typeName
	if name == "" {
		if name, err = stringField("type", f[0]); err != nil {
			return Value{}, err
		}
	}
	if f[1] == nil {
		return Value{}, errors.New("value is missing")
	}
	return Value{name, f[1]}, nil
}

// notJSON returns an error with the problem that json.Valid found, and its position.
func notJSON(body []byte) error {
	err := json.Unmarshal(body, new(json.RawMessage))
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return malformed("%v at byte %d", err, syntax.Offset)
	}
	return malformed("%v", err)
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", fault.ErrMalformed, fmt.Sprintf(format, args...))
}
