// Package contain calls the user's code where a panic or runtime.Goexit must not harm anything else.
package contain

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
)

// maxFrames bounds the frames of a stack that is kept.
const maxFrames = 64

// own reports whether a function belongs to the library: to its root package or to a package in internal/.
func own(function string) bool {
	rest, ok := strings.CutPrefix(function, "github.com/seed-416683c9/dispatcher")
	return ok && (strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "/internal/"))
}

// Stack returns the stack of the panic that its caller, a deferred function, has recovered. The stack begins where
// the user's code panicked and has no frames of the library. Unlike debug.Stack, it shows no argument values.
func Stack() []byte {
	pcs := make([]uintptr, maxFrames)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	var all, users []byte
	panicked, culprit := false, ""
	for more := true; more; {
		var f runtime.Frame
		f, more = frames.Next()
		if !panicked { // frames of the deferred function
			panicked = f.Function == "runtime.gopanic"
			continue
		}
		line := fmt.Appendf(nil, "%s\n\t%s:%d\n", f.Function, f.File, f.Line)
		all = append(all, line...)
		inner := strings.HasPrefix(f.Function, "runtime.") || strings.HasPrefix(f.Function, "reflect.")
		if culprit == "" && !inner {
			culprit = f.Function
		}
		// How the library calls functions.
		called := f.Function == "reflect.Value.Call" || f.Function == "reflect.Value.call"
		if !strings.HasPrefix(f.Function, "runtime.") && !called && !own(f.Function) {
			users = append(users, line...)
		}
	}
	if own(culprit) { // a bug of the library
		users = all
	}
	return bytes.TrimSuffix(users, []byte("\n"))
}
