package dispatcher

import (
	"bytes"
	"encoding/json"
	"strconv"

	"github.com/seed-416683c9/dispatcher/internal/wire"
)

// DecodeTask decodes the body of a message as a worker does, and returns its UUID, Name and Args. The value of each
// argument is a [json.RawMessage], a copy; [Task.DecodeArgs] converts it. Fields that travel beside the body are not
// set. UUID may be "", since old senders write none. The error Is [ErrMalformed].
func DecodeTask(body []byte) (*Task, error) {
	decoded, err := wire.Decode(body)
	if err != nil {
		return nil, err
	}
	t := &Task{UUID: decoded.UUID, Name: decoded.Name}
	for _, a := range decoded.Args {
		t.Args = append(t.Args, TaskArgument{Type: a.Type, Value: json.RawMessage(bytes.Clone(a.Value))})
	}
	return t, nil
}

// DecodeArgs converts the arguments of t as a worker does for a function with these parameters, and stores them in the
// variables that params point to. There must be one param for each argument, and none may be nil. t may be a decoded
// task or one made by [NewTask], whose values DecodeArgs encodes first.
//
//	var to string
//	var copies int
//	err := task.DecodeArgs(&to, &copies)
//
// If the arguments do not fit, the error is an *ArgumentError and no variable is changed. DecodeArgs only reads t.
func (t *Task) DecodeArgs(params ...any) error {
	args := make([]wire.Value, len(t.Args))
	for i, arg := range t.Args {
		raw, bad := wire.AppendArgument(nil, wire.Argument(arg))
		if bad != nil {
			return &ArgumentError{t.Name, i, bad.Want, bad.Got}
		}
		decoded, err := wire.DecodeArgument(raw)
		if err != nil {
			return &ArgumentError{t.Name, i, strconv.Quote(arg.Type), err.Error()}
		}
		args[i] = decoded
	}
	return store(t.Name, args, params)
}
