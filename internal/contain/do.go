package contain

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/seed-416683c9/dispatcher/internal/text"
)

// Do calls f, a method of the user's what, on a goroutine of its own and waits for it. If f panics or ends its goroutine,
// Do returns an error.
func Do[T any](log *slog.Logger, what string, f func() (T, error)) (v T, err error) {
	err = fmt.Errorf("the %s called runtime.Goexit", what)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("the %s panicked: %s", what, printed(p))
				log.Error(what+" panicked", "err", err, StackKey, string(Stack()))
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

// errProbe matches no error. Calling errors.Is with it runs the methods of a whole chain.
var errProbe = errors.New("probe")

// printed returns the text of a panic's value, whose own methods may panic again.
func printed(p any) (s string) {
	defer func() {
		if recover() != nil {
			s = fmt.Sprintf("a value of type %T", p)
		}
	}()
	return text.OneLine(fmt.Sprint(p))
}
