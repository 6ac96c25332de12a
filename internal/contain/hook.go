package contain

import (
	"fmt"
	"log/slog"

	"github.com/seed-416683c9/dispatcher/internal/text"
)

// StackKey is the log attribute of a stack.
const StackKey = "stack"

// Call calls f with e and contains its panic, which it logs as the panic of a hook.
func Call[E any](log *slog.Logger, f func(E), e E) { CallAs(log, "hook", f, e) }

// CallAs is Call for a function with another name.
func CallAs[E any](log *slog.Logger, what string, f func(E), e E) {
	defer func() {
		if v := recover(); v != nil {
			// The value may be a secret, so only its type is logged.
			log.Error(what+" panicked", "panic", text.OneLine(fmt.Sprintf("%T", v)), StackKey, string(Stack()))
		}
	}()
	f(e)
}

// CallApart is Call on a goroutine of its own, for callers that must go on even if f ends its goroutine.
func CallApart[E any](log *slog.Logger, f func(E), e E) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		Call(log, f, e)
	}()
	<-done
}
