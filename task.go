package dispatcher

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/text"
	"github.com/seed-416683c9/dispatcher/internal/wire"
)

// Task is a request to call the function that a worker has registered under Name.
//
// Publish fills UUID and RoutingKey in the caller's Task if they are empty, and reads the rest. So a Task belongs to
// one goroutine until Publish returns. Nothing of it is kept afterwards.
type Task struct {
	// UUID is the identity of the task and of its message. "": Publish sets a random one. Valid UTF-8, at most
	// 255 bytes. A program that needs it before Publish may use crypto/rand.Text.
	UUID string `json:"uuid"`
	// Name chooses the function. Required; valid UTF-8.
	Name string `json:"name"`
	// RoutingKey decides which queues get the task. "": Publish sets ServerConfig.DefaultRoutingKey. At most 255 bytes.
	// It is not part of the body.
	RoutingKey string `json:"-"`
	// Args are the arguments of the function, in its order, without the context and without the uuid of
	// TaskUUIDAsFirstArg. nil: none. [Args] makes them from plain values.
	Args []TaskArgument `json:"args"`
	// Headers travel beside the body. nil: none. Values are string, bool, integers (sent as int64, a larger uint64 is
	// an error), floats (not NaN and not infinite), []byte, time.Time (cut to its second and in UTC on every broker,
	// since AMQP carries no more), nil, and slices and maps with string keys of these, at most 16 deep. Names have 1 to
	// 255 bytes. CC, BCC and names that begin with x-dispatcher- are refused.
	//
	// Together they take at most 65,536 bytes as they travel; more is [ErrTooLarge]. A name takes 1 byte and its
	// length, a string or []byte 5 bytes and its length, a number or a time 9 bytes, a bool 2, nil 1, a slice or map 5
	// bytes and its elements. There are at most 8,000 headers, and 8,000 elements in each slice or map, because
	// RabbitMQ adds to a message and a worker must still be able to read it.
	Headers map[string]interface{} `json:"-"`
	// Delay keeps the task back for that long, counted from the call of Publish. It is never early, slightly late
	// (docs/rabbitmq.md says how late). 0: no delay. Negative, or more than 366 days: an error. The task waits in the
	// broker, on RabbitMQ accurate to 32 ms. Publish returns nil when the broker has stored it. If its routing key
	// leads nowhere when it is due, the task goes to DeadLetters(Undeliverable).
	Delay time.Duration `json:"-"`
	// NotBefore is Delay as a time, by this machine's clock. Zero or past: no delay. Setting both is an error.
	NotBefore time.Time `json:"-"`
	// ExpiresAt is the time, by the worker's clock, after which the task is not started any more. It then becomes a
	// dead letter with the reason expired. If an attempt fails and the next one would begin too late, it becomes one at
	// once. A replay removes ExpiresAt. Zero: never. Past, or not after the delay: an error.
	ExpiresAt time.Time `json:"-"`
}

// TaskArgument is one argument with its declared type. [Args] declares the types of plain values.
type TaskArgument struct {
	// Type is one of: bool, string, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64, float32,
	// float64; []byte, time.Time, time.Duration; a slice []T or a map map[string]T of the first fourteen; json. A
	// worker that runs gofort/dispatcher knows only the first fourteen, and any other name crashes it.
	Type string `json:"type"`
	// Value is of the declared type, or of another Go type whose JSON is a value of the declared type: 5 and 5.0 are an
	// int8, 300 and 1.5 are not. A value that does not fit is an *ArgumentError from Publish.
	Value interface{} `json:"value"`
}

// TaskConfig configures how a worker runs the tasks of one name. It is read when the worker is created.
type TaskConfig struct {
	// TimeoutSeconds bounds one attempt, in seconds. 0: no limit, unless Timeout is set. Setting both is an error.
	TimeoutSeconds int64
	// Function is any func; required. Its parameters are a [context.Context] (optional), the uuid (with
	// TaskUUIDAsFirstArg), then one for each argument of the task. It may be variadic. Results are ignored, except a
	// last one that is an error (an interface or a pointer): if it is not nil, the attempt failed. Function is called
	// from several goroutines at once, as many as WorkerConfig.Limit.
	//
	// An integer fits any integer parameter that can hold the value. float32 fits float64, and float64 fits float32
	// when nothing is lost. In json, a list that fills a Go array must have as many elements as the array, and an
	// integer that fills a float must be one that the float can hold exactly. A parameter of type any receives a value
	// of the declared type. Numbers that json decodes into any are [json.Number], so that large integers stay exact.
	Function interface{}
	// TaskUUIDAsFirstArg passes the task's uuid before its arguments; that parameter must be a string.
	TaskUUIDAsFirstArg bool
	// Timeout bounds one attempt. 0: no limit, unless TimeoutSeconds is set. Setting both is an error.
	Timeout time.Duration
	// Retry decides when the task is tried again after a failed attempt. nil: as the worker says.
	Retry *RetryPolicy
	// Middleware wraps the function, inside the worker's; the first is outermost. No element may be nil.
	Middleware []Middleware
}

// NewTask returns a task with the given name and with [Args] of the values. It never panics and checks nothing: Publish
// returns an error for an empty name or an unsupported value.
func NewTask(name string, args ...any) *Task {
	return &Task{Name: name, Args: Args(args...)}
}

// Args declares the type of each value. Without values it returns nil.
//
//   - bool, string, the sizes of int and uint, float32 and float64 keep their name. Values of named types such as
//     [time.Duration] are converted to those, because every worker understands them: a duration travels as int64
//     nanoseconds.
//   - []byte is base64. [time.Time] is RFC 3339 with nanoseconds and keeps the offset, not the name, of its zone.
//     Anywhere in a value, a time whose offset has seconds is an *ArgumentError: RFC 3339 cannot write it.
//   - Slices of those fourteen are "[]int64" and the like, maps with string keys "map[string]int64" and the like.
//   - Everything else is "json": nil, structs, pointers, arrays, [json.RawMessage], slices of slices, …. A RawMessage
//     as an argument of its own keeps its bytes, without white space around them; inside another value encoding/json
//     changes white space and escapes.
//
// Args never panics. A chan, func, complex number, uintptr or unsafe.Pointer, a struct all of whose fields are
// invisible to encoding/json, or a slice, array, map or pointer of those, keeps the Type "", and Publish returns an
// *ArgumentError with its position. The values are not copied deeply: don't change what they point to before Publish
// returns.
func Args(values ...any) []TaskArgument {
	if len(values) == 0 {
		return nil
	}
	args := make([]TaskArgument, len(values))
	for i, v := range values {
		switch v.(type) {
		case nil, json.RawMessage:
			args[i] = TaskArgument{"json", v}
		case string:
			args[i] = TaskArgument{"string", v}
		case int:
			args[i] = TaskArgument{"int", v}
		case int64:
			args[i] = TaskArgument{"int64", v}
		case bool:
			args[i] = TaskArgument{"bool", v}
		case float64:
			args[i] = TaskArgument{"float64", v}
		case []byte:
			args[i] = TaskArgument{"[]byte", v}
		case time.Time:
			args[i] = TaskArgument{"time.Time", v}
		default:
			args[i] = TaskArgument(wire.Infer(v))
		}
	}
	return args
}

// encodeTask returns the body of a task: byte for byte what json.Marshal gives, except that a json.RawMessage stays as
// it is. It checks that every value is of its declared type, so that every published task can be decoded. Otherwise it
// returns an *ArgumentError.
func encodeTask(t *Task) ([]byte, error) {
	if !utf8.ValidString(t.UUID) {
		return nil, &ArgumentError{t.Name, -1, "a uuid in valid UTF-8", strconv.Quote(text.Excerpt(t.UUID))}
	}
	if !utf8.ValidString(t.Name) {
		return nil, &ArgumentError{t.Name, -1, "a name in valid UTF-8", strconv.Quote(text.Excerpt(t.Name))}
	}
	buf := make([]byte, 0, 48+len(t.UUID)+len(t.Name)+64*len(t.Args))
	buf = wire.AppendString(append(buf, `{"uuid":`...), t.UUID)
	buf = wire.AppendString(append(buf, `,"name":`...), t.Name)
	buf = append(buf, `,"args":`...)
	if t.Args == nil {
		return append(buf, "null}"...), nil
	}
	buf = append(buf, '[')
	for i, arg := range t.Args {
		if i > 0 {
			buf = append(buf, ',')
		}
		var bad *wire.Mismatch
		if buf, bad = wire.AppendArgument(buf, wire.Argument(arg)); bad != nil {
			return nil, &ArgumentError{t.Name, i, bad.Want, bad.Got}
		}
	}
	return append(buf, "]}"...), nil
}

// due returns when the task may be delivered, from its three times. Zero means at once.
func (t *Task) due(now time.Time) (time.Time, error) {
	at := t.NotBefore
	switch {
	case t.Delay < 0:
		return at, fmt.Errorf("Task.Delay is negative: %v", t.Delay)
	case t.Delay > 0 && !at.IsZero():
		return at, errors.New("Task.Delay and Task.NotBefore are both set")
	case t.Delay > 0:
		at = now.Add(t.Delay)
	}
	if wait := at.Sub(now); wait > broker.MaxDelay {
		return at, fmt.Errorf("task is due in %v, the maximum is %v", wait.Round(time.Second), broker.MaxDelay)
	}
	if e := t.ExpiresAt; !e.IsZero() {
		switch {
		case !e.After(now):
			return at, fmt.Errorf("%w: Task.ExpiresAt %s is in the past", ErrExpired, record.FormatTime(e))
		case !at.IsZero() && !e.After(at):
			return at, fmt.Errorf("Task.ExpiresAt %s is not after the time the task is due, %s",
				record.FormatTime(e), record.FormatTime(at))
		}
	}
	if !at.After(now) {
		return time.Time{}, nil
	}
	return at, nil
}

// newUUID returns a random UUID (version 4) in its usual form. Each reads its own 16 bytes from the system, and none are
// kept in store: a copy of the memory, as in a snapshot of a virtual machine, cannot give the same one twice.
func newUUID() string {
	var id uuid.UUID
	_, _ = rand.Read(id[:]) // never fails
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}
