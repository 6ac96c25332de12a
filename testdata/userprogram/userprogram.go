// Package userprogram stands for a program that uses the library. The stack of a panic keeps its frames: they are
// neither in the root package nor in internal/, whose frames the library leaves out.
package userprogram

import (
	"context"

	"github.com/seed-416683c9/dispatcher"
)

// PanicsHere is a task function that panics.
func PanicsHere() { panic("boom") }

// Through is a middleware that does nothing.
func Through(next dispatcher.TaskFunc) dispatcher.TaskFunc {
	return func(ctx context.Context) error { return next(ctx) }
}
