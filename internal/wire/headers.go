package wire

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/text"
)

const (
	maxHeaderName  = 255 // bytes; an AMQP field name has one byte of length
	maxHeaderDepth = 16  // of nested slices and maps

	// maxHeaderBytes bounds all headers of a task, as they travel: see Task.Headers. They share one frame with the
	// properties of the message, with the library's additions (the attempt log and the error of a dead letter) and with
	// RabbitMQ's addition to a message that waits (x-death, 10 KiB at most). RabbitMQ limits a frame to 128 KiB
	// (frame_max).
	maxHeaderBytes = 64 << 10

	// maxHeaderEntries bounds the elements of each slice or map. amqp091-go ends its connection over more than 8,192,
	// and the library and the broker need some of them.
	maxHeaderEntries = 8000
)

// Headers returns a deep copy of a task's headers. It contains only types that every broker carries: string, bool,
// int64, float64, []byte, time.Time, nil, []any and map[string]any. nil stays nil. The error names the header; it does
// not say that the task is rejected. The caller must not write h meanwhile.
func Headers(h map[string]interface{}) (map[string]any, error) {
	if h == nil {
		return nil, nil
	}
	if err := checkEntries(len(h)); err != nil {
		return nil, err
	}
	out := make(map[string]any, len(h))
	left := headerBudget(maxHeaderBytes)
	for name, v := range h {
		if err := left.checkName(name); err != nil {
			return nil, fmt.Errorf("header %q: %w", text.Excerpt(name), err)
		}
		// RabbitMQ treats CC and BCC as further routing keys. In another case they are ordinary names.
		if name == "CC" || name == "BCC" {
			return nil, fmt.Errorf("header %q would route the task to other queues", name)
		}
		if len(name) >= len(record.Prefix) && strings.EqualFold(name[:len(record.Prefix)], record.Prefix) {
			return nil, fmt.Errorf("header %q: names that begin with %s are reserved",
				text.Excerpt(name), record.Prefix)
		}
		plain, err := left.value(v, 0)
		if err != nil {
			return nil, fmt.Errorf("header %q: %w", text.Excerpt(name), err)
		}
		if name == "x-death" && !isTables(plain) {
			return nil, fmt.Errorf("header %q is not a slice of maps, as RabbitMQ writes it", name)
		}
		out[name] = plain
	}
	return out, nil
}

// isTables reports whether RabbitMQ can add an entry to v. If x-death has other elements, a queue of RabbitMQ (3.10.8)
// crashes when it dead-letters the message, and loses all that it has not stored.
func isTables(v any) bool {
	list, ok := v.([]any)
	return ok && !slices.ContainsFunc(list, func(e any) bool { _, ok := e.(map[string]any); return !ok })
}

// headerBudget is the rest of maxHeaderBytes while headers are copied.
type headerBudget int

func (left *headerBudget) spend(n int) error {
	if *left -= headerBudget(n); *left < 0 {
		return fmt.Errorf("%w: the headers take more than %d bytes", broker.ErrTooLarge, maxHeaderBytes)
	}
	return nil
}

func (left *headerBudget) checkName(name string) error {
	if name == "" {
		return errors.New("the name is empty")
	}
	if len(name) > maxHeaderName {
		return fmt.Errorf("the name has %d bytes, the maximum is %d", len(name), maxHeaderName)
	}
	return left.spend(1 + len(name))
}

func checkEntries(n int) error {
	if n > maxHeaderEntries {
		return fmt.Errorf("%w: %d entries, the maximum is %d", broker.ErrTooLarge, n, maxHeaderEntries)
	}
	return nil
}

// value normalises one value inside depth slices and maps.
func (left *headerBudget) value(v any, depth int) (any, error) {
	switch v := v.(type) {
	case nil:
		return nil, left.spend(1)
	case bool:
		return v, left.spend(2)
	case int64:
		return v, left.spend(9)
	case time.Time: // AMQP carries seconds and no zone; done for every broker
		return time.Unix(v.Unix(), 0).UTC(), left.spend(9)
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) { // RabbitMQ would end the connection
			return nil, fmt.Errorf("%v cannot be sent", v)
		}
		return v, left.spend(9)
	case string:
		return v, left.spend(5 + len(v))
	case int:
		return int64(v), left.spend(9)
	case uint64:
		if v > math.MaxInt64 {
			return nil, fmt.Errorf("%d does not fit in an int64", v)
		}
		return int64(v), left.spend(9)
	case []byte:
		if err := left.spend(5 + len(v)); err != nil {
			return nil, err
		}
		return append([]byte{}, v...), nil
	case []any:
		return left.list(v, depth+1)
	case map[string]any:
		return left.table(v, depth+1)
	}
	plain, ok := plainHeader(v)
	if !ok {
		return nil, fmt.Errorf("a value of type %T cannot be sent", v)
	}
	return left.value(plain, depth)
}

// container spends the bytes that a slice or map takes beside its elements.
func (left *headerBudget) container(entries int) error {
	if err := checkEntries(entries); err != nil {
		return err
	}
	return left.spend(5)
}

func (left *headerBudget) list(list []any, depth int) (any, error) {
	if depth > maxHeaderDepth {
		return nil, errTooDeep
	}
	if err := left.container(len(list)); err != nil {
		return nil, err
	}
	out := make([]any, len(list))
	for i, v := range list {
		plain, err := left.value(v, depth)
		if err != nil {
			return nil, inside(fmt.Sprintf("[%d]", i), err)
		}
		out[i] = plain
	}
	return out, nil
}

func (left *headerBudget) table(table map[string]any, depth int) (any, error) {
	if depth > maxHeaderDepth {
		return nil, errTooDeep
	}
	if err := left.container(len(table)); err != nil {
		return nil, err
	}
	out := make(map[string]any, len(table))
	for name, v := range table {
		err := left.checkName(name)
		var plain any
		if err == nil {
			plain, err = left.value(v, depth)
		}
		if err != nil {
			return nil, inside(fmt.Sprintf("[%q]", text.Excerpt(name)), err)
		}
		out[name] = plain
	}
	return out, nil
}

// errTooDeep is also the error for a value that contains itself.
var errTooDeep = fmt.Errorf("slices and maps nested deeper than %d", maxHeaderDepth)

// inside adds the position of an error within a value. It leaves out the path of a value that is nested too deep,
// because 16 steps would help nobody.
func inside(step string, err error) error {
	if errors.Is(err, errTooDeep) {
		return err
	}
	return fmt.Errorf("at %s: %w", step, err)
}
