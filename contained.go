package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
)

// The user's Log and Outbox are called on the library's goroutines, where a panic would end the process. Panics of hooks are contained
// by fire, those of task functions by shift.invoke. What follows runtime.Goexit in a hook is in hooks.go.

// contain wraps the user's Log and Outbox in c.
func (c *ServerConfig) contain() {
	c.Logger = containedLog{c.Logger}
	if _, ours := c.Outbox.(*MemoryOutbox); c.Outbox != nil && !ours {
		c.Outbox = containedOutbox{c.Outbox, c.Logger}
	}
}

// containedLog drops a message whose Log panics.
type containedLog struct{ log Log }

func swallow() { _ = recover() }

func (l containedLog) Info(args ...interface{}) {
	defer swallow()
	l.log.Info(args...)
}

func (l containedLog) Infof(format string, args ...interface{}) {
	defer swallow()
	l.log.Infof(format, args...)
}

func (l containedLog) Debug(args ...interface{}) {
	defer swallow()
	l.log.Debug(args...)
}

func (l containedLog) Debugf(format string, args ...interface{}) {
	defer swallow()
	l.log.Debugf(format, args...)
}

func (l containedLog) Error(args ...interface{}) {
	defer swallow()
	l.log.Error(args...)
}

func (l containedLog) Errorf(format string, args ...interface{}) {
	defer swallow()
	l.log.Errorf(format, args...)
}

// containedOutbox returns an error for a method that panics or ends its goroutine. Each call has a goroutine of its own, because a
// carrier, or the caller of Publish, could not go on after runtime.Goexit.
type containedOutbox struct {
	outbox Outbox
	log    Log
}

// contained calls f and waits for it.
func contained[T any](log Log, f func() (T, error)) (v T, err error) {
	err = errors.New("the outbox ended its goroutine (runtime.Goexit)")
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("the outbox panicked: %s", printed(p))
				log.Errorf("%v\n%s", err, debug.Stack())
			}
		}()
		got, failed := f()
		if failed != nil { // its own methods may panic too: better here than later
			_, _ = failed.Error(), errors.Is(failed, errProbe)
		}
		v, err = got, failed
	}()
	<-done
	return v, err
}

// errProbe matches no error: errors.Is with it runs the methods of a whole chain.
var errProbe = errors.New("probe")

// printed is the text of a panic's value, whose own methods may panic again.
func printed(p any) (text string) {
	defer func() {
		if recover() != nil {
			text = fmt.Sprintf("a value of type %T", p)
		}
	}()
	return oneLine(fmt.Sprint(p))
}

// Notify implements [OutboxNotifier], also for an outbox that does not: then nobody is notified.
func (o containedOutbox) Notify(added func(string)) {
	if n, ok := o.outbox.(OutboxNotifier); ok {
		_, _ = contained(o.log, func() (struct{}, error) { n.Notify(added); return struct{}{}, nil })
	}
}

func (o containedOutbox) Add(ctx context.Context, e OutboxEntry) error {
	_, err := contained(o.log, func() (struct{}, error) { return struct{}{}, o.outbox.Add(ctx, e) })
	return err
}

func (o containedOutbox) Oldest(ctx context.Context, routingKey string) (OutboxEntry, bool, error) {
	type oldest struct {
		entry OutboxEntry
		found bool
	}
	v, err := contained(o.log, func() (v oldest, err error) {
		v.entry, v.found, err = o.outbox.Oldest(ctx, routingKey)
		return v, err
	})
	return v.entry, v.found, err
}

func (o containedOutbox) Remove(ctx context.Context, e OutboxEntry) error {
	_, err := contained(o.log, func() (struct{}, error) { return struct{}{}, o.outbox.Remove(ctx, e) })
	return err
}

func (o containedOutbox) Bury(ctx context.Context, e OutboxEntry) error {
	_, err := contained(o.log, func() (struct{}, error) { return struct{}{}, o.outbox.Bury(ctx, e) })
	return err
}

func (o containedOutbox) Keys(ctx context.Context) ([]string, error) {
	return contained(o.log, func() ([]string, error) { return o.outbox.Keys(ctx) })
}

func (o containedOutbox) Counts(ctx context.Context) (OutboxCounts, error) {
	return contained(o.log, func() (OutboxCounts, error) { return o.outbox.Counts(ctx) })
}
