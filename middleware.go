package dispatcher

import "context"

// TaskFunc is one call of a task's function, with its arguments bound.
type TaskFunc func(ctx context.Context) error

// Middleware wraps the call of a task's function: to open a span, take a lock, add to the context, or decide not to
// call it. It is called once for every attempt, with the rest of the chain. The TaskFunc that it returns decides the
// outcome of the attempt.
//
// [TaskFromContext] returns the task and its headers, but no arguments, which may be secret. A Middleware runs on the
// goroutine of the attempt, inside its timeout: if it waits, for instance for a rate limiter, it takes that time from
// the function. Its panics are failed attempts. A panic of the function passes through it, and is a [*PanicError] to
// the hooks.
//
//	func timed(next dispatcher.TaskFunc) dispatcher.TaskFunc {
//		return func(ctx context.Context) error {
//			defer observe(time.Now())
//			return next(ctx)
//		}
//	}
type Middleware func(next TaskFunc) TaskFunc

// wrap puts chain around call, the first outermost.
func wrap(chain []Middleware, call TaskFunc) TaskFunc {
	for i := len(chain) - 1; i >= 0; i-- {
		call = chain[i](call)
	}
	return call
}
