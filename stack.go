package dispatcher

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
)

// maxFrames bounds the frames of a stack that is kept.
const maxFrames = 64

// ownPrefix begins the names of this package's functions. The name of a function in a package below it has a slash in
// place of the dot.
const ownPrefix = "github.com/seed-416683c9/dispatcher."

// userStack returns the stack of the panic that its caller, a deferred function, has recovered. The stack begins where
// the user's code panicked and has no frames of the library. Unlike debug.Stack, it shows no argument values.
func userStack() []byte {
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
		called := f.Function == "reflect.Value.Call" || f.Function == "reflect.Value.call" // how the library calls functions
		if !strings.HasPrefix(f.Function, "runtime.") && !called && !strings.HasPrefix(f.Function, ownPrefix) {
			users = append(users, line...)
		}
	}
	if strings.HasPrefix(culprit, ownPrefix) { // a bug of the library
		users = all
	}
	return bytes.TrimSuffix(users, []byte("\n"))
}
