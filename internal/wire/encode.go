package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/seed-416683c9/dispatcher/internal/text"
)

// Argument is an argument as the sender declares it. It is the root package's TaskArgument.
type Argument struct {
	Type  string
	Value any
}

// AppendArgument appends one element of args.
func AppendArgument(buf []byte, arg Argument) ([]byte, *Mismatch) {
	typ := ParseType(arg.Type)
	if typ.Shape == shapeUnknown {
		got := fmt.Sprintf("type %q of a Go value of type %T", text.Excerpt(arg.Type), arg.Value)
		return nil, &Mismatch{Want: "a known type", Got: got}
	}
	buf = AppendString(append(buf, `{"type":`...), arg.Type)
	buf = append(buf, `,"value":`...)
	buf, bad := appendValue(buf, typ, arg)
	return append(buf, '}'), bad
}

func appendValue(buf []byte, typ argType, arg Argument) ([]byte, *Mismatch) {
	switch v := arg.Value.(type) { // fast paths, without json.Marshal and without decoding its output
	case string:
		if typ.is(kindString) && utf8.ValidString(v) {
			return AppendString(buf, v), nil
		}
	case bool:
		if typ.is(kindBool) {
			return strconv.AppendBool(buf, v), nil
		}
	case int:
		if typ.is(kindInt) {
			return strconv.AppendInt(buf, int64(v), 10), nil
		}
	case int64:
		if typ.is(kindInt64) {
			return strconv.AppendInt(buf, v, 10), nil
		}
	case uint64:
		if typ.is(kindUint64) {
			return strconv.AppendUint(buf, v, 10), nil
		}
	case []byte:
		if typ.Shape == shapeBytes && v != nil {
			buf = base64.StdEncoding.AppendEncode(append(buf, '"'), v)
			return append(buf, '"'), nil
		}
	case json.RawMessage: // json.Marshal would change white space and escapes, and break a signature over them
		if raw := trimSpace(v); typ.Shape == shapeJSON && json.Valid(raw) {
			if err := checkText(arg.Value, raw); err != nil {
				return nil, &Mismatch{Want: arg.Type, Got: text.Reason(err)}
			}
			return append(buf, raw...), nil
		}
	}
	raw, err := marshal(arg.Value)
	if err == nil {
		err = checkText(arg.Value, raw)
	}
	if err != nil {
		return nil, &Mismatch{Want: arg.Type, Got: text.Reason(err)}
	}
	if !exactly(arg.Value, typ) {
		if bad := checkValue(typ, raw, leafOf(arg.Value)); bad != nil {
			bad.Want = arg.Type
			return nil, bad
		}
	}
	return append(buf, raw...), nil
}

// marshal is json.Marshal, but turns panics of the value's own methods into errors.
func marshal(v any) (raw []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("a value whose encoding panicked: %v", p)
		}
	}()
	return json.Marshal(v)
}

// checkText refuses values that json.Marshal accepts although a worker would get a different value, or refuse it.
func checkText(v any, raw []byte) error {
	if badText(raw) >= 0 || isFlawed(replacedText, v, raw) {
		return errors.New("text that is not valid UTF-8")
	}
	if isFlawed(shiftedTime, v, raw) {
		return errors.New("a time with seconds in its zone offset; use UTC")
	}
	if tooDeep(raw) {
		return errors.New("a value that is nested too deep")
	}
	return nil
}

// AppendString appends s as json.Marshal writes it.
func AppendString(buf []byte, s string) []byte {
	start := len(buf)
	buf = append(append(buf, '"'), s...)
	text := buf[start+1:]
	if endOfPlain(text, 0) < len(text) ||
		bytes.IndexByte(text, '<') >= 0 || bytes.IndexByte(text, '>') >= 0 || bytes.IndexByte(text, '&') >= 0 {
		quoted, _ := json.Marshal(s) // a string cannot fail
		return append(buf[:start], quoted...)
	}
	return append(buf, '"')
}
